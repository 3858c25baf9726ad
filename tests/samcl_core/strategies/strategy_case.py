"""Two toy domains that contradict each other, and what strategies need to learn them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import Adapter
from samcl_core.backbones import Backbone, tiny_backbone
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.files import sha256_file
from samcl_core.strategies import Context, State, Strategy, Task, segment
from samcl_core.training import Batch, MaskCache, PrefixCache, batch_loss, prompts_of

OPTIONS = TrainParams(epochs=2, batch_size=4, lr=0.01, schedule="cosine", upsampling="bilinear", loss_reduction="mean")
SIZE = 64


def discs(folder: Path, name: str, num: int, *, is_inverted: bool, split: str = "train") -> tuple[Sample, ...]:
    """Images of a disc under one point. The mask is the disc or, inverted, everything but the disc."""
    return tuple(_disc(folder / name / split, row, is_inverted) for row in range(num))


def _disc(folder: Path, row: int, is_inverted: bool) -> Sample:
    rng = np.random.default_rng([row, is_inverted, len(folder.name)])
    x, y, radius = rng.integers(20, 44), rng.integers(20, 44), rng.integers(10, 18)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    tint = np.array([40, 120, 150] if is_inverted else [150, 120, 40])
    pixels = rng.integers(0, 60, (SIZE, SIZE, 3)) + disc[..., None] * tint
    names = folder / f"images/{row}.png", folder / f"masks/{row}.png"
    for path, values in zip(names, (pixels, (disc != is_inverted) * 255), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)
    digests = [sha256_file(path) for path in names]
    point = (float(x) * 1024 / SIZE, float(y) * 1024 / SIZE)
    return Sample(f"{folder.name}/images/{row}.png", *names, *digests, SIZE, SIZE, (point,), (1,))


def toy_tasks(folder: Path, num: int = 6) -> tuple[Task, Task]:
    """``disc``, where the disc is the object, and ``ground``, where it is everything else."""
    return tuple(  # type: ignore[return-value]
        Task(
            name,
            discs(folder, name, num, is_inverted=is_inverted),
            discs(folder, name, 3, is_inverted=is_inverted, split="val"),
        )
        for name, is_inverted in (("disc", False), ("ground", True))
    )


def small_adapter(backbone: Backbone) -> Adapter:
    """An AugModule of rank 4 with the default profile's options."""
    return build_adapter(
        "augmodule", backbone.site, rank=4, window_heatmap="crop", neck_axes="image", point_labels="signed"
    )


def toy_context(**changes: Any) -> Context:
    """The tiny backbone, prefixes in memory, two epochs."""
    backbone = tiny_backbone()
    context = Context(backbone, PrefixCache(None, backbone), small_adapter(backbone), OPTIONS, seed=5)
    return replace(context, **changes)


def learnt(strategy: Strategy, tasks: Sequence[Task], context: Context) -> list[State]:
    """The state after each of ``tasks``."""
    states: list[State] = []
    for count in range(1, len(tasks) + 1):
        states.append(strategy.learn(states[-1] if states else None, tasks[:count], context))
    return states


def batch_of(samples: Sequence[Sample], context: Context) -> Batch:
    """All of ``samples`` as one training batch."""
    masks = MaskCache(context.backbone.image_size).get(samples)
    return Batch(context.cache.get(samples), prompts_of(samples), masks, tuple(samples))


@torch.no_grad()
def loss_of(strategy: Strategy, state: State | None, samples: Sequence[Sample], context: Context) -> float:
    """The training loss of what a strategy answers."""
    batch = batch_of(samples, context)
    found = segment(strategy, state, batch.prefix, batch.prompts, context)
    return float(batch_loss(found, batch, context.options).total)


class Untouchable(Sample):
    """A sample of an earlier domain: looking at anything but its id fails."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("id", "__class__"):
            return object.__getattribute__(self, name)
        raise AssertionError(f"{name} of an earlier domain's sample was read")


def guarded(task: Task, allowed: Sequence[str] = ()) -> Task:
    """``task`` with samples that cannot be read, but for the ids in ``allowed``."""
    return Task(task.name, tuple(s if s.id in allowed else _untouchable(s) for s in task.train))


def _untouchable(sample: Sample) -> Sample:
    hidden = object.__new__(Untouchable)
    object.__setattr__(hidden, "id", sample.id)
    return hidden
