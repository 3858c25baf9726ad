"""What one training step needs: the samples of its batch as tensors, this process's share of them in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Prefix, Prompts
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.training.data import MaskCache, prompts_of
from samcl_core.training.distributed import num_processes, rank
from samcl_core.training.draw_prompts import cosam_prompts
from samcl_core.training.draws import stream_of
from samcl_core.training.prefix_cache import PrefixCache

__all__ = ["Batch", "Chooser", "ahead", "batches", "shares"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What one step needs, or a part of it, on the CPU.

    Attributes:
        prefix: of the images.
        prompts: of the images.
        masks: (B, S, S) uint8 ground truth at the size of the loss.
        samples: what the batch was made of.
        step: number of the step in the training, from 0.
        seed: of the training; with ``step`` it seeds what is random in the step.
        first: which image of the step's whole batch is the first one here.
        whole: images in the step's whole batch; 0: it is this one.
    """

    prefix: Prefix
    prompts: Prompts
    masks: Tensor
    samples: tuple[Sample, ...] = ()
    step: int = 0
    seed: int = 0
    first: int = 0
    whole: int = 0

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def num_images(self) -> int:
        """Images in the step's whole batch."""
        return self.whole or len(self)

    @property
    def share(self) -> float:
        """The part of the whole batch's images that is here; 1 where it was not divided."""
        return len(self) / self.num_images

    @property
    def rows(self) -> slice:
        """Where the images here stand in the whole batch."""
        return slice(self.first, self.first + len(self))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``, the prefix in float32."""
        prefix, masks = self.prefix.to(device, non_blocking=True), self.masks.to(device, non_blocking=True)
        return replace(self, prefix=_wide(prefix), prompts=self.prompts.to(device), masks=masks)

    def part(self, rows: slice) -> Batch:
        """Some of the images, ``rows`` of the whole batch."""
        here = slice(rows.start - self.first, rows.stop - self.first)
        if here == slice(0, len(self)):
            return self
        return replace(
            self,
            prefix=self.prefix[here],
            prompts=_cut(self.prompts, here),
            masks=self.masks[here],
            samples=self.samples[here],
            first=rows.start,
            whole=self.num_images,
        )


class Chooser(Protocol):
    """The one method of ``Extra`` that batches are made with."""

    def chosen(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]:
        """The samples of a step, as of ``Extra.chosen``."""
        ...


def batches(
    backbone: Backbone,
    cache: PrefixCache,
    masks: MaskCache,
    samples: Sequence[Sample],
    options: TrainParams,
    seed: int,
    epoch: int,
    extra: Chooser,
) -> Iterator[list[Batch]]:
    """One epoch: for each step the parts that this process computes, one after the other; none where it has no image.

    Beside a GPU the next step's batch is gathered, in page-locked memory, while the current one is computed.
    """
    order, size, is_cuda = _order(len(samples), seed, epoch), options.batch_size, backbone.device.type == "cuda"
    num_steps = math.ceil(len(order) / size)

    def gather(start: int) -> list[Batch]:
        step = epoch * num_steps + start // size
        chosen = extra.chosen([samples[row] for row in order[start : start + size]], step)
        parts = shares(len(chosen), options.accumulate)
        if not parts:
            return []
        rows = slice(parts[0].start, parts[-1].stop)
        mine = tuple(chosen[rows])
        if options.prompts == "cosam":  # what is drawn depends on all masks of the batch
            truth = masks.get(chosen)
            prompts, truth = cosam_prompts(truth, backbone.site.grid, seed=seed, step=step), truth[rows]
        else:
            prompts, truth = prompts_of(chosen), masks.get(mine)
        if is_cuda:
            truth = truth.pin_memory()
        prefix = cache.get(mine, pinned=is_cuda)
        batch = Batch(prefix, _cut(prompts, rows), truth, mine, step, seed, rows.start, len(chosen))
        return [batch.part(part) for part in parts]

    starts = range(0, len(order), size)
    return ahead(gather, starts) if is_cuda else map(gather, starts)


def shares(count: int, accumulate: int) -> list[slice]:
    """Rows of a batch of ``count`` images that this process computes, in ``accumulate`` parts; empty ones left out.

    All parts of all processes are equally large, up to one image.
    """
    first, num_parts = rank() * accumulate, num_processes() * accumulate
    ends = [count * part // num_parts for part in range(first, first + accumulate + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends) if stop > start]


def ahead(gather: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """``map`` with one call running ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for start in starts:
            following = pool.submit(gather, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _order(count: int, seed: int, epoch: int) -> list[int]:
    """The samples' order in one epoch; it needs no state of the epochs before it."""
    order: list[int] = stream_of("samcl.train.order", seed, epoch).permutation(count).tolist()
    return order


def _wide(prefix: Prefix) -> Prefix:
    """In float32: what goes to a GPU is widened there."""
    side = {name: tensor.float() for name, tensor in prefix.side.items()}
    return Prefix(prefix.tokens.float(), prefix.embedding.float(), side, prefix.split)


def _cut(prompts: Prompts, rows: slice) -> Prompts:
    boxes = None if prompts.boxes is None else prompts.boxes[rows]
    masks = None if prompts.masks is None else prompts.masks[rows]
    return Prompts(prompts.points[rows], prompts.labels[rows], boxes, masks)
