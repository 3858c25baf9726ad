"""How ``sam_nano`` is pretrained: numbers, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PretrainOptions", "is_constant", "learning_rate"]


@dataclass(frozen=True)
class PretrainOptions:
    """How ``sam_nano`` is pretrained.

    Attributes:
        steps: optimiser steps.
        batch_size: scenes a step.
        objects: prompted objects a scene; the encoder runs once for all of them.
        lr: highest learning rate (AdamW).
        warmup: steps of the linear warm-up.
        guided: steps in which the loss goes over from its guided form to SAM's own (see ``prompt_loss``).
        decay: share of the steps, at the end, in which the learning rate falls linearly to zero.
        weight_decay: of AdamW.
        checkpoint_every: steps between two checkpoints.
        seed: everything random follows from it and the number of the step.
    """

    steps: int = 12_000
    batch_size: int = 4
    objects: int = 8
    lr: float = 1e-3
    warmup: int = 200
    guided: int = 6_000
    decay: float = 0.5
    weight_decay: float = 0.01
    checkpoint_every: int = 500
    seed: int = 0


def learning_rate(options: PretrainOptions, step: int) -> float:
    """Linear warm-up, constant, then linear to zero at ``options.steps``."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    return options.lr * warm * _decay(options, step)


def _decay(options: PretrainOptions, step: int) -> float:
    """Exactly 1 as long as nothing depends on the number of steps."""
    return min(1.0, (options.steps - step) / max(1.0, options.decay * options.steps))


def is_constant(options: PretrainOptions, done: int) -> bool:
    """Whether the first ``done`` steps are the same for every number of steps that has as many before its decay."""
    return _decay(options, done - 1) == 1
