"""Learning rates in closed form: the rate of a step depends on its number alone, so a resumed run needs no state."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Schedule", "learning_rate"]

Schedule = Literal["cosine", "cosine_per_iteration", "constant", "step"]


def learning_rate(
    step: int,
    *,
    num_steps: int,
    epochs: int,
    lr: float,
    lr_min: float = 0.0,
    schedule: Schedule = "cosine",
    warmup_frac: float = 0.0,
    drop_epochs: int = 10,
) -> float:
    """The rate of one optimiser step.

    Args:
        step: 0-based number of the step, over all epochs.
        num_steps: steps of the whole training.
        epochs: epochs of the whole training.
        lr: the highest rate.
        lr_min: the lowest rate of the cosine.
        schedule: ``cosine`` falls once, from ``lr`` to ``lr_min`` over all steps. ``cosine_per_iteration`` is the
            published code: its period counts epochs but it advances with every step, so the rate reaches ``lr_min``
            after ``epochs`` *steps*, rises again, and so on (METHOD section 5, row 2). ``constant`` is ``lr``. ``step``
            is a tenth of the rate after every ``drop_epochs`` epochs, whatever ``lr_min`` is (CoSAM).
        warmup_frac: share of all steps in which the rate rises linearly to ``lr``; the schedule starts after them.
        drop_epochs: epochs between two drops of ``step``, counted from the start.

    Returns:
        The rate, between ``lr_min`` and ``lr`` after the warm-up.

    Raises:
        ValueError: ``step`` is not one of the training's steps, or the schedule is unknown.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step is {step}, expected 0 to {num_steps - 1}")
    warmup = int(warmup_frac * num_steps)
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return lr
    if schedule == "step":
        return lr * 0.1 ** (step * epochs // num_steps // drop_epochs)
    if schedule == "cosine":
        return _cosine((step - warmup) / (num_steps - warmup), lr, lr_min)
    if schedule == "cosine_per_iteration":
        return _cosine((step - warmup) / epochs, lr, lr_min)
    raise ValueError(f"schedule is {schedule!r}, expected 'cosine', 'cosine_per_iteration', 'constant' or 'step'")


def _cosine(phase: float, lr: float, lr_min: float) -> float:
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * phase)) / 2
