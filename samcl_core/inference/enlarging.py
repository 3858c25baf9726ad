"""Logits to masks at the size of the images, images of one size together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from samcl_core.evaluation.metrics import binarize
from samcl_core.training import resize_logits

__all__ = ["by_size", "enlarged_masks"]

_CPU_PIXELS = 1 << 20
_DEVICE_PIXELS = 1 << 25
"""Pixels of enlarged logits in memory at a time, at least one image's; on the CPU they stay in the cache."""


def by_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """(height, width) to the positions of the images that have it, in order."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, size in enumerate(sizes):
        groups[size].append(position)
    return dict(groups)


def enlarged_masks(logits: Tensor, size: tuple[int, int], mode: Literal["bilinear", "nearest"]) -> Tensor:
    """(B, 1, h, w) logits to (B, height, width) bool masks, each the same as if it were alone."""
    limit = _CPU_PIXELS if logits.device.type == "cpu" else _DEVICE_PIXELS
    parts = torch.split(logits, max(1, limit // (size[0] * size[1])))
    masks = [binarize(resize_logits(part, size, mode)[:, 0]) for part in parts]
    return masks[0] if len(masks) == 1 else torch.cat(masks)
