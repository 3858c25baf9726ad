"""The loss of SAMCL: focal + 10 * dice + squared error of the predicted IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "DICE_WEIGHT",
    "FOCAL_ALPHA",
    "LossParts",
    "Reduction",
    "combined",
    "focal_of_logits",
    "focal_of_probability",
    "mask_loss",
    "real_iou",
    "resize_logits",
]

Reduction = Literal["mean", "reference"]

FOCAL_ALPHA = 0.8
DICE_WEIGHT = 10.0


@dataclass(frozen=True)
class LossParts:
    """A batch's loss as 0-d tensors; ``total = focal + 10 * dice + iou`` carries the gradient."""

    focal: Tensor
    dice: Tensor
    iou: Tensor
    total: Tensor

    def values(self) -> dict[str, float]:
        """The parts as numbers, fetched from the device in one copy."""
        names = ("focal", "dice", "iou", "total")
        numbers = torch.stack([getattr(self, name).detach() for name in names]).tolist()
        return dict(zip(names, numbers, strict=True))


def resize_logits(
    logits: Tensor, size_px: int | tuple[int, int], mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Resize (B, 1, h, w) logits to a square of ``size_px`` or to (height, width), float32.

    ``bilinear`` (``align_corners=False``) is what the official packages do, ``nearest`` what the published SAMCL code
    does for SAM (METHOD section 5, row 6).
    """
    corners = False if mode == "bilinear" else None
    return F.interpolate(logits.float(), size=size_px, mode=mode, align_corners=corners)


def mask_loss(
    logits: Tensor, masks: Tensor, iou_pred: Tensor, reduction: Reduction = "mean", share: float = 1.0
) -> LossParts:
    """Loss of predicted masks against the ground truth (SAMCL, arXiv 2412.05012).

    Per image, over its pixels: ``focal = 0.8 * mean((1 - exp(-bce))^2 * bce)``,
    ``dice = 1 - (2 * sum(p * t) + 1) / (sum p + sum t + 1)`` and ``iou = (iou_pred - real IoU)^2``, where the real IoU
    carries no gradient.

    Args:
        logits: (B, 1, H, W) float mask logits.
        masks: (B, H, W) ground truth, 0 or 1, any dtype.
        iou_pred: (B, 1) float, the model's estimate of each mask's IoU.
        reduction: ``mean`` averages all three over the images, computes on logits (finite for any finite logit) and
            takes a pixel as foreground where its logit is > 0; two empty masks have IoU 1. ``reference`` is the
            published code number for number: focal and dice are summed over the images, the IoU term is averaged,
            the cross-entropy is taken on the float32 sigmoid (so capped at 100, without gradient there), foreground
            is where the *logit* is > 0.5, and two empty masks have IoU 0.
        share: the images' share of a batch that is taken in parts. Means over images are multiplied by it and sums are
            not, so that the losses of the parts add up to the loss of the batch.

    Returns:
        The parts and their weighted sum.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or masks.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and masks {tuple(masks.shape)}, expected (B, 1, H, W), (B, H, W)"
        )
    if iou_pred.shape != (logits.shape[0], 1):
        raise ValueError(f"iou_pred is {tuple(iou_pred.shape)}, expected ({logits.shape[0]}, 1)")
    if reduction not in ("mean", "reference"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'reference'")
    x = logits.float().flatten(1)
    truth = masks.to(x.dtype).flatten(1)
    found = x > (0.5 if reduction == "reference" else 0)
    inter = (found * truth).sum(1)
    real = real_iou(inter, found.sum(1) + truth.sum(1) - inter, reduction)
    focal = (focal_of_probability if reduction == "reference" else focal_of_logits)(x, truth).mean(1)
    return combined(focal, _dice(x, truth), real, iou_pred, reduction, share)


def combined(
    focal: Tensor,
    dice: Tensor,
    real: Tensor,
    iou_pred: Tensor,
    reduction: Reduction,
    share: float = 1.0,
    weighted: Tensor | None = None,
) -> LossParts:
    """The loss of a batch from (B,) focal and dice terms and real IoUs of its images; see ``mask_loss``.

    ``weighted`` (B,) is ``focal + 10 * dice`` where it alone carries the gradient.
    """
    iou = (iou_pred.float()[:, 0] - real).square().mean()
    if reduction == "reference":
        focal, dice, weighted = focal.sum(), dice.sum(), None if weighted is None else weighted.sum()
    else:
        focal, dice, weighted = focal.mean(), dice.mean(), None if weighted is None else weighted.mean()
    if weighted is None:
        weighted = focal + DICE_WEIGHT * dice
    if share != 1:
        iou = share * iou
        if reduction == "mean":
            focal, dice, weighted = share * focal, share * dice, share * weighted
    return LossParts(focal, dice, iou, weighted + iou)


def focal_of_logits(x: Tensor, truth: Tensor) -> Tensor:
    """The focal term of each pixel, from its logit; finite for any finite one."""
    bce = F.binary_cross_entropy_with_logits(x, truth, reduction="none")
    return FOCAL_ALPHA * (torch.expm1(-bce).square() * bce)


def focal_of_probability(x: Tensor, truth: Tensor) -> Tensor:
    """The focal term of each pixel as published: on the float32 sigmoid of its logit."""
    bce = F.binary_cross_entropy(torch.sigmoid(x), truth, reduction="none")
    return FOCAL_ALPHA * ((1 - torch.exp(-bce)).square() * bce)


def real_iou(inter: Tensor, union: Tensor, reduction: Reduction) -> Tensor:
    """IoU of each image from its intersection and union in pixels."""
    empty = 0.0 if reduction == "reference" else 1.0
    return torch.where(union > 0, inter / (union + 1e-7), torch.full_like(inter, empty))


def _dice(x: Tensor, truth: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
