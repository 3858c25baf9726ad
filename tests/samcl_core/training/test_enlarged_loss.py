from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from samcl_core.training.enlarged_loss import enlarged_mask_loss
from samcl_core.training.losses import LossParts, mask_loss, resize_logits

REDUCTIONS, MODES = ("mean", "reference"), ("bilinear", "nearest")


def random_case(num: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(num, 1, 8, 6, generator=draw, dtype=dtype) * 4
    masks = (torch.rand(num, 32, 24, generator=draw) < 0.4).to(torch.uint8)
    return logits, masks, torch.rand(num, 1, generator=draw)


def solved(parts: LossParts, *leaves: Tensor) -> list[Tensor]:
    parts.total.backward()  # type: ignore[no-untyped-call]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    return [torch.tensor(list(parts.values().values())), *gradients]


def both(
    logits: Tensor, masks: Tensor, iou_pred: Tensor, reduction: str, mode: str, share: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and gradients: of the enlarged maps, and without them."""
    found = []
    for is_fast in (False, True):
        x, q = logits.clone().requires_grad_(), iou_pred.clone().requires_grad_()
        if is_fast:
            parts = enlarged_mask_loss(x, masks, q, reduction, mode, share)  # type: ignore[arg-type]
        else:
            large = resize_logits(x, tuple(masks.shape[1:]), mode)  # type: ignore[arg-type]
            parts = mask_loss(large, masks, q, reduction, share)  # type: ignore[arg-type]
        found.append(solved(parts, x, q))
    return found[0], found[1]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["typical", "saturated", "empty", "full", "small", "odd"])
def test_loss_and_gradients_equal_those_of_the_enlarged_maps(reduction: str, mode: str, case: str) -> None:
    logits, masks, iou_pred = random_case()
    if case == "saturated":
        logits = logits * 60
    elif case in ("empty", "full"):
        masks = torch.full_like(masks, int(case == "full"))
    elif case == "small":
        masks = masks[:, ::8, ::8]  # smaller than the logits
    elif case == "odd":
        masks = masks[:, :29, :23]  # no whole factor
    slow, fast = both(logits, masks, iou_pred, reduction, mode)
    for expected, found in zip(slow, fast, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_fast_losses_are_the_published_ones(reduction: str, recipe: ModuleType) -> None:
    """On the goldens' recipe, whose logits have the size of the mask: enlarging by 1 changes nothing."""
    values = recipe.loss_case("typical")
    logits, masks, iou_pred = (torch.from_numpy(values[name]) for name in ("logits", "mask", "iou_pred"))
    for mode in MODES:
        slow, fast = both(logits, masks, iou_pred, reduction, mode)
        for expected, found in zip(slow, fast, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_batch_add_up_to_the_batch(reduction: str, mode: str) -> None:
    logits, masks, iou_pred = random_case(5)
    whole = both(logits, masks, iou_pred, reduction, mode)[1]
    sums: Tensor | float = 0.0
    gradients = []
    for rows in (slice(0, 2), slice(2, 5)):
        share = (rows.stop - rows.start) / 5
        values, of_logits, _ = both(logits[rows], masks[rows], iou_pred[rows], reduction, mode, share)[1]
        sums = sums + values
        gradients.append(of_logits)
    torch.testing.assert_close(sums, whole[0], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(torch.cat(gradients), whole[1], rtol=2e-6, atol=1e-8)


def test_slopes_by_finite_differences() -> None:
    logits, masks, iou_pred = random_case(2)
    (_, slope, _) = both(logits, masks, iou_pred, "mean", "bilinear")[1]
    step = 1e-2
    for index in ((0, 0, 0, 0), (1, 0, 5, 4), (1, 0, 7, 5)):
        values = []
        for sign in (-1, 1):
            moved = logits.clone()
            moved[index] += sign * step
            values.append(float(enlarged_mask_loss(moved, masks, iou_pred).total.double()))
        assert (values[1] - values[0]) / (2 * step) == pytest.approx(float(slope[index]), rel=5e-2, abs=1e-4)


def test_half_precision_logits_get_their_gradient_in_their_own_format() -> None:
    logits, masks, iou_pred = random_case(dtype=torch.bfloat16)
    for mode in MODES:
        x = logits.clone().requires_grad_()
        parts = enlarged_mask_loss(x, masks, iou_pred, "mean", mode)  # type: ignore[arg-type]
        parts.total.backward()  # type: ignore[no-untyped-call]
        assert parts.total.dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.bfloat16
        wide = enlarged_mask_loss(logits.float(), masks, iou_pred, "mean", mode)  # type: ignore[arg-type]
        assert float(parts.total.detach()) == float(wide.total)


def test_wrong_shapes_are_refused() -> None:
    logits, masks, iou_pred = random_case()
    with pytest.raises(ValueError, match=r"masks \(2, 32, 24\)"):
        enlarged_mask_loss(logits, masks[:2], iou_pred)
    with pytest.raises(ValueError, match=r"iou_pred \(3,\)"):
        enlarged_mask_loss(logits, masks, iou_pred[:, 0])
