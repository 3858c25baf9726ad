"""``mask_loss`` of enlarged logits without enlarged maps: the same numbers within rounding, in less time and memory.

``nearest`` by a whole factor repeats each logit in a cell of pixels, so a cell's part of every sum follows from its
logit and its number of foreground pixels. ``bilinear`` needs the enlarged map, but of few images at a time: the slope
of an image's loss is computed beside the loss and shrunk at once, so nothing enlarged is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samcl_core.training.losses import (
    DICE_WEIGHT,
    FOCAL_ALPHA,
    LossParts,
    Reduction,
    combined,
    focal_of_logits,
    focal_of_probability,
    mask_loss,
    real_iou,
    resize_logits,
)

__all__ = ["enlarged_mask_loss"]

_CPU_PIXELS = 1 << 20
"""Enlarged logits in work at a time: an image of ViT-B, whose maps stay in the cache, or many small ones."""
_CUDA_PIXELS = 1 << 23


def enlarged_mask_loss(
    logits: Tensor,
    masks: Tensor,
    iou_pred: Tensor,
    reduction: Reduction = "mean",
    upsampling: Literal["bilinear", "nearest"] = "bilinear",
    share: float = 1.0,
) -> LossParts:
    """``mask_loss(resize_logits(logits, size of the masks, upsampling), masks, iou_pred, reduction, share)``.

    Args:
        logits: (B, 1, h, w) float mask logits of any size.
        masks: (B, H, W) ground truth, 0 or 1, any dtype.
        iou_pred: (B, 1) float.
        reduction: as in ``mask_loss``.
        upsampling: as in ``resize_logits``.
        share: as in ``mask_loss``.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    is_flat = logits.ndim == 4 and masks.ndim == 3 and logits.shape[:2] == (len(masks), 1)
    if not is_flat or iou_pred.shape != (len(masks), 1):
        raise ValueError(
            f"logits {tuple(logits.shape)}, masks {tuple(masks.shape)}, iou_pred {tuple(iou_pred.shape)}, "
            "expected (B, 1, h, w), (B, H, W), (B, 1)"
        )
    height, width = masks.shape[1:]
    is_whole = height % logits.shape[2] == 0 and width % logits.shape[3] == 0
    if upsampling == "bilinear":
        weighted, focal, dice, real = _Enlarged.apply(logits, masks, reduction)
        return combined(focal, dice, real, iou_pred, reduction, share, weighted)
    if is_whole:
        focal, dice, real = _of_cells(logits[:, 0].float(), masks, reduction)
        return combined(focal, dice, real, iou_pred, reduction, share)
    return mask_loss(resize_logits(logits, (height, width), upsampling), masks, iou_pred, reduction, share)


def _of_cells(logits: Tensor, masks: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    """Focal, dice and real IoU (B,) of (B, h, w) logits that each fill a cell of the (B, H, W) masks."""
    count, height, width = logits.shape
    cells = masks.reshape(count, height, masks.shape[1] // height, width, masks.shape[2] // width)
    # Row by row of a cell first: sums over neighbours in memory are several times slower.
    ones = cells.float().sum(2).sum(3).flatten(1)
    x, size = logits.flatten(1), cells.shape[2] * cells.shape[4]
    focal_of = focal_of_probability if reduction == "reference" else focal_of_logits
    focal = focal_of(x, torch.ones_like(x)) * ones + focal_of(x, torch.zeros_like(x)) * (size - ones)
    p, truth = torch.sigmoid(x), ones.sum(1)
    dice = 1 - (2 * (p * ones).sum(1) + 1) / (size * p.sum(1) + truth + 1)
    with torch.no_grad():
        found = x > (0.5 if reduction == "reference" else 0)
        inter = (found * ones).sum(1)
        real = real_iou(inter, size * found.sum(1) + truth - inter, reduction)
    return focal.sum(1) / (size * x.shape[1]), dice, real


class _Enlarged(torch.autograd.Function):
    """(B, 1, h, w) logits and (B, H, W) masks to (B,) numbers of the bilinearly enlarged logits.

    ``focal + 10 * dice``, which carries the gradient, and beside it focal, dice and real IoU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, reduction: Reduction) -> tuple[Tensor, ...]:
        pixels = _CPU_PIXELS if logits.device.type == "cpu" else _CUDA_PIXELS
        size = max(1, pixels // masks.shape[1:].numel())
        across = [_enlarging(*sides, logits.device) for sides in zip(logits.shape[2:], masks.shape[1:], strict=True)]
        numbers, slopes = [], []
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            found, slope = _of_images(logits[rows].float(), masks[rows], reduction, ctx.needs_input_grad[0])
            numbers.append(found)
            if slope is not None:  # back to the small logits, the same way on every device
                slopes.append(across[0].T @ (slope.view(-1, *masks.shape[1:]) @ across[1]))
        ctx.save_for_backward(*([torch.cat(slopes)] if slopes else []))
        ctx.dtype = logits.dtype
        focal, dice, real = torch.cat(numbers, 1)
        ctx.mark_non_differentiable(focal, dice, real)
        return focal + DICE_WEIGHT * dice, focal, dice, real

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None, None] * slopes)[:, None].to(ctx.dtype), None, None


def _enlarging(small: int, large: int, device: torch.device) -> Tensor:
    """(large, small): what a row or column becomes."""
    eye = torch.eye(small, device=device)[None]
    return F.interpolate(eye, size=large, mode="linear", align_corners=False)[0].T.contiguous()


def _of_images(logits: Tensor, masks: Tensor, reduction: Reduction, has_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Focal, dice and real IoU (3, b), and the slope (b, N) of ``focal + 10 * dice`` at the pixels."""
    x = resize_logits(logits, (masks.shape[1], masks.shape[2]), "bilinear").flatten(1)
    truth = masks.to(x.dtype).flatten(1)
    area = truth.sum(1)
    found = (x > (0.5 if reduction == "reference" else 0)).to(x.dtype)
    both = torch.linalg.vecdot(found, truth)
    real = real_iou(both, found.sum(1) + area - both, reduction)
    focal, p, slope, of_p = (_of_pixels_reference if reduction == "reference" else _of_pixels)(x, truth)
    above, below = 2 * torch.linalg.vecdot(p, truth) + 1, p.sum(1) + area + 1
    numbers = torch.stack([focal, 1 - above / below, real])
    if not has_slope:
        return numbers, None
    # d dice / d p = above / below^2 - 2 t / below
    of_dice = truth.mul_((-2 * DICE_WEIGHT / below)[:, None]).add_((DICE_WEIGHT * above / below.square())[:, None])
    return numbers, slope.addcmul_(of_dice, of_p)


def _of_pixels(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Focal (b,), probabilities p (b, N), the slope of focal and that of p at the pixels; computed on logits."""
    sign = 1 - 2 * truth
    wrong = x * sign
    bce = F.softplus(wrong)  # -log of the right answer's probability
    wrong.sigmoid_()
    right, squared = 1 - wrong, wrong.square()
    focal = FOCAL_ALPHA * torch.linalg.vecdot(squared, bce) / x.shape[1]
    p = torch.addcmul(truth, sign, wrong)
    slope = bce.mul_(right).mul_(2).add_(wrong).mul_(squared).mul_(sign).mul_(FOCAL_ALPHA / x.shape[1])
    return focal, p, slope, right.mul_(wrong)


def _of_pixels_reference(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same on float32 probabilities, as published: without a slope where they are 0 or 1."""
    p = torch.sigmoid(x)
    bce = F.binary_cross_entropy(p, truth, reduction="none")
    right = torch.exp(-bce)
    wrong = 1 - right
    focal = FOCAL_ALPHA * (wrong.square() * bce).mean(1)
    of_p = p * (1 - p)
    of_bce = (p - truth) / of_p.clamp(min=1e-12) * of_p
    slope = (2 * wrong * right * bce + wrong.square()) * of_bce * (FOCAL_ALPHA / x.shape[1])
    return focal, p, slope, of_p
