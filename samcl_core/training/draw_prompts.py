"""Prompts that training draws anew in each step from the ground truth, as HQ-SAM and CoSAM do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samcl_core.backbones.base import FRAME_PX, Prompts
from samcl_core.domains.images import load_mask
from samcl_core.domains.layout import Sample
from samcl_core.domains.points import WHOLE_FRAME, box_of
from samcl_core.training.draws import stream_of

__all__ = ["NUM_POINTS", "box_prompts", "cosam_prompts", "noisy_masks"]

NUM_POINTS = 10
_KINDS = ("box", "points", "mask")
_COARSE = 8
_INCOHERENT = 0.01
_FOREGROUND = 255.0


def cosam_prompts(masks: Tensor, grid: int, *, seed: int, step: int) -> Prompts:
    """One kind of prompt for a batch, each equally likely: tight boxes, 10 points of the mask, or a noisy mask.

    Where a mask has fewer than 10 pixels the batch gets no points, as in the published code; an empty mask has the
    whole frame as its box. (The published code draws the kind for each image; here a batch is one pass of the decoder.)

    Args:
        masks: (B, S, S) ground truth, 0 or 1, on the CPU.
        grid: side of the backbone's token grid; mask prompts have four times that side.
        seed: of the training.
        step: of the training, from 0; seed and step give the same prompts again.

    Returns:
        On the CPU, in the 1024 frame.
    """
    rng = stream_of("samcl.train.prompts", seed, step)
    has_points = int(masks.flatten(1).count_nonzero(1).min()) >= NUM_POINTS
    kinds = _KINDS if has_points else tuple(kind for kind in _KINDS if kind != "points")
    kind = kinds[int(rng.integers(len(kinds)))]
    count = len(masks)
    nothing = Prompts(torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int64))
    if kind == "box":
        return _boxes([mask.numpy() > 0 for mask in masks])
    if kind == "mask":
        return Prompts(nothing.points, nothing.labels, masks=noisy_masks(masks, 4 * grid, rng))
    points = torch.stack([_points(mask, rng) for mask in masks])
    return Prompts(points, torch.ones(count, NUM_POINTS, dtype=torch.int64))


def box_prompts(samples: Sequence[Sample]) -> Prompts:
    """The tight box of each sample's ground truth and no points, on the CPU; of an empty mask the whole frame.

    Raises:
        ImageError: a mask cannot be read.
    """
    return _boxes([load_mask(sample.mask) for sample in samples])


def noisy_masks(masks: Tensor, size_px: int, rng: np.random.Generator) -> Tensor:
    """(B, S, S) ground truth to (B, 1, size, size) float32 mask prompts, 0 or 255, noisy along the outlines.

    Only pixels change that an eighth of the resolution cannot hold (the incoherent region of Mask Transfiner,
    arXiv 2111.13673, section 3.1): there, standard normal noise is added before the threshold of 0.5. The prompt
    encoder gets the published values, foreground 255 and background 0.
    """
    fine = F.interpolate(masks[:, None].float(), size=(size_px, size_px), mode="bilinear", align_corners=False)
    side = max(1, size_px // _COARSE)
    coarse = F.interpolate(fine, size=(side, side), mode="bilinear", align_corners=False)
    back = F.interpolate(coarse, size=(size_px, size_px), mode="bilinear", align_corners=False)
    is_incoherent = (fine - back).abs() >= _INCOHERENT
    noise = torch.from_numpy(rng.standard_normal(tuple(fine.shape), dtype=np.float32))
    return (fine + noise * is_incoherent > 0.5).float() * _FOREGROUND


def _boxes(masks: Sequence[np.ndarray]) -> Prompts:
    boxes = [box_of(mask) if mask.any() else WHOLE_FRAME for mask in masks]
    points, labels = torch.zeros(len(masks), 0, 2), torch.zeros(len(masks), 0, dtype=torch.int64)
    return Prompts(points, labels, torch.tensor(boxes, dtype=torch.float32))


def _points(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """(10, 2) distinct pixel centres inside a mask, in the 1024 frame."""
    inside = mask.flatten().nonzero()[:, 0].numpy()
    rows, columns = np.divmod(inside[rng.choice(len(inside), NUM_POINTS, replace=False)], mask.shape[1])
    scale = np.array([FRAME_PX / mask.shape[1], FRAME_PX / mask.shape[0]])
    return torch.from_numpy((np.stack([columns, rows], axis=1) + 0.5) * scale).float()
