"""The loss of HQ-SAM and CoSAM: cross-entropy and Dice on points that are dense where the mask is uncertain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NUM_POINTS", "PointLossParts", "point_loss", "sample_at", "uncertain_points"]

NUM_POINTS = 112 * 112
OVERSAMPLE = 3
IMPORTANCE = 0.75


@dataclass(frozen=True)
class PointLossParts:
    """A batch's loss as 0-d tensors; ``total = bce + dice`` carries the gradient."""

    bce: Tensor
    dice: Tensor
    total: Tensor

    def values(self) -> dict[str, float]:
        """The parts as numbers, fetched from the device in one copy."""
        numbers = torch.stack([self.bce.detach(), self.dice.detach(), self.total.detach()]).tolist()
        return dict(zip(("bce", "dice", "total"), numbers, strict=True))


def point_loss(
    logits: Tensor,
    masks: Tensor,
    rng: np.random.Generator,
    *,
    num_points: int = NUM_POINTS,
    first: int = 0,
    share: float = 1.0,
) -> PointLossParts:
    """``bce + dice`` at points of each image, the mean over the images (CoSAM, arXiv 2412.06418, section 4; HQ-SAM).

    Over an image's points, with probability p and target t: ``bce`` is the mean cross-entropy and
    ``dice = 1 - (2 * sum(p * t) + 1) / (sum p + sum t + 1)``. Both sides are read bilinearly, so the logits are not
    enlarged first, and targets at an outline lie between 0 and 1.

    Args:
        logits: (B, 1, h, w) float mask logits, of any size.
        masks: (B, H, W) ground truth, 0 or 1, any dtype.
        rng: where the points come from.
        num_points: how many an image, 112 * 112 in the papers.
        first: with a part of a batch, how many images of the batch come before it: they have drawn already.
        share: the part's share of the batch's images, so that the losses of the parts add up to the loss of the batch.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or masks.ndim != 3 or len(masks) != len(logits):
        raise ValueError(
            f"logits {tuple(logits.shape)} and masks {tuple(masks.shape)}, expected (B, 1, h, w), (B, H, W)"
        )
    logits = logits.float()
    with torch.no_grad():
        if first:
            rng.random((first, _num_drawn(num_points), 2), dtype=np.float32)
        points = uncertain_points(logits, rng, num_points)
        truth = sample_at(masks[:, None].to(logits.dtype), points)
    found = sample_at(logits, points)
    bce = F.binary_cross_entropy_with_logits(found, truth)
    p = torch.sigmoid(found)
    dice = (1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)).mean()
    if share != 1:
        bce, dice = share * bce, share * dice
    return PointLossParts(bce, dice, bce + dice)


def uncertain_points(logits: Tensor, rng: np.random.Generator, num_points: int = NUM_POINTS) -> Tensor:
    """Points as PointRend draws them in training (Kirillov et al., arXiv 1912.08193, section 3.1).

    Of three times as many uniform points those with logits nearest to 0 are kept, 75 % of the result; the rest is
    uniform.

    Args:
        logits: (B, 1, h, w) float.
        rng: drawn from on the CPU, so that the points are the same on every device.
        num_points: how many an image.

    Returns:
        (B, num_points, 2) x, y in 0..1 of width and height, the uncertain ones first.
    """
    num_kept = int(IMPORTANCE * num_points)
    drawn = torch.from_numpy(rng.random((len(logits), _num_drawn(num_points), 2), dtype=np.float32)).to(logits.device)
    candidates, others = drawn[:, : OVERSAMPLE * num_points], drawn[:, OVERSAMPLE * num_points :]
    nearest = sample_at(logits, candidates).abs().topk(num_kept, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), others], dim=1)


def _num_drawn(num_points: int) -> int:
    return OVERSAMPLE * num_points + num_points - int(IMPORTANCE * num_points)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (B, N) of (B, 1, h, w) maps at (B, N, 2) points x, y in 0..1.

    Pixel centres are at (index + 0.5) / size; beyond the outermost ones the map is blended with 0, as in the
    published code.
    """
    found: Tensor = F.grid_sample(maps, 2 * points[:, :, None] - 1, mode="bilinear", align_corners=False)
    return found[:, 0, :, 0]
