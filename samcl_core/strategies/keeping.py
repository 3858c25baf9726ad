"""Stored training samples: which are kept of a domain, which of them a step replays, and how many bytes they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from samcl_core.domains.layout import Sample
from samcl_core.errors import DataError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.strategies.base import Context, State, Task
from samcl_core.training import Batch, MaskCache, box_prompts, prompts_of

__all__ = ["as_batch", "drawn", "identity", "keep", "kept_samples", "picked"]


def picked(task: Task, count: int, seed: int) -> tuple[Sample, ...]:
    """``count`` training samples of a domain (all, where there are fewer), drawn at random, in the order of their ids.

    The draw depends on seed, domain and the samples' digests, not on their order.
    """

    def lot(sample: Sample) -> int:
        return derived_seed("samcl.keep", seed, task.name, sample.id, sample.image_sha256, sample.mask_sha256)

    return tuple(sorted(sorted(task.train, key=lot)[:count], key=lambda sample: sample.id))


def keep(samples: Sequence[Sample]) -> tuple[tuple[str, ...], int]:
    """Ids of ``samples``, and the bytes of their image and mask files."""
    size = sum(path.stat().st_size for sample in samples for path in (sample.image, sample.mask))
    return tuple(sample.id for sample in samples), size


def identity(samples: Sequence[Sample]) -> list[Any]:
    """Everything about ``samples`` that a training depends on, as JSON values."""
    return [[s.id, s.image_sha256, s.mask_sha256, s.points, s.labels, s.box] for s in samples]


def as_batch(samples: Sequence[Sample], masks: MaskCache, context: Context, step: int = 0) -> Batch:
    """``samples`` as a batch on the backbone's device, with their own prompts, even where training draws some.

    Under CoSAM's protocol the prompt is the box, as in its validation.
    """
    prompts = (box_prompts if context.options.prompts == "cosam" else prompts_of)(samples)
    batch = Batch(context.cache.get(samples), prompts, masks.get(samples), tuple(samples), step, context.seed)
    return batch.to(context.backbone.device)


def kept_samples(state: State, tasks: Sequence[Task]) -> dict[str, tuple[Sample, ...]]:
    """The stored samples by domain, in the stored order; ``tasks`` holds the domains that the state has learnt.

    Raises:
        DataError: a stored sample is no training sample any more.
    """
    by_name: Mapping[str, Task] = {task.name: task for task in tasks}
    found = {}
    for name, ids in state.kept.items():
        wanted = set(ids)
        samples = {sample.id: sample for sample in by_name[name].train if sample.id in wanted}
        if missing := [row for row in ids if row not in samples]:
            raise DataError(
                f"{missing[0]} of {name} was stored for replay and is no training sample any more, "
                f"expected {len(ids)} stored samples, found {len(samples)}",
                hint="learn the stream again from its first domain",
            )
        found[name] = tuple(samples[row] for row in ids)
    return found


def drawn(num_stored: int, count: int, seed: int, step: int) -> list[int]:
    """``count`` row numbers below ``num_stored`` for one training step, at random; none twice before all came once."""
    generator = torch.Generator().manual_seed(derived_seed("samcl.replay", seed, step))
    rows: list[int] = []
    while len(rows) < count:
        rows += torch.randperm(num_stored, generator=generator).tolist()
    return rows[:count]
