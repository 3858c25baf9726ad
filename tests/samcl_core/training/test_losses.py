from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samcl_core.training.losses import mask_loss, resize_logits

CASES = ("typical", "small", "saturated", "empty_mask", "full_mask")
RTOL, ATOL = 1e-5, 1e-6


@pytest.fixture(scope="module")
def goldens(golden: Callable[[str], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return golden("losses")


@pytest.mark.parametrize("name", CASES)
def test_reference_loss_and_gradients_equal_the_published_code(
    name: str, recipe: ModuleType, goldens: dict[str, np.ndarray], parity: Any
) -> None:
    values = recipe.loss_case(name)
    logits = torch.from_numpy(values["logits"]).requires_grad_()
    iou_pred = torch.from_numpy(values["iou_pred"]).requires_grad_()
    parts = mask_loss(logits, torch.from_numpy(values["mask"]), iou_pred, "reference")
    parts.total.backward()
    found = [parts.values()[part] for part in ("focal", "dice", "iou", "total")]
    parity("losses", "both", found, goldens[f"{name}_components"], rtol=RTOL, atol=ATOL)
    assert logits.grad is not None and iou_pred.grad is not None
    parity("loss gradients: logits", "both", logits.grad.numpy(), goldens[f"{name}_grad_logits"], rtol=RTOL, atol=1e-7)
    parity("loss gradients: predicted IoU", "both", iou_pred.grad, goldens[f"{name}_grad_iou"], rtol=RTOL, atol=ATOL)


def test_reference_parts_of_single_images_sum_to_the_batch(
    recipe: ModuleType, goldens: dict[str, np.ndarray], parity: Any
) -> None:
    values = recipe.loss_case("typical")
    for row, (focal, dice, _) in enumerate(goldens["typical_per_image"]):
        one = slice(row, row + 1)
        parts = mask_loss(
            torch.from_numpy(values["logits"][one]),
            torch.from_numpy(values["mask"][one]),
            torch.from_numpy(values["iou_pred"][one]),
            "reference",
        )
        parity("losses: images one by one", "both", [parts.focal, parts.dice], [focal, dice], rtol=RTOL, atol=ATOL)


def random_case(num: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num, 1, 6, 5, generator=generator, dtype=dtype) * 3
    return logits, torch.rand(num, 6, 5, generator=generator) < 0.4, torch.rand(num, 1, generator=generator)


def test_mean_loss_by_hand() -> None:
    logits, masks, iou_pred = random_case()
    parts = mask_loss(logits, masks, iou_pred)
    focal, dice, iou = [], [], []
    for row in range(3):
        x, truth = logits[row, 0].double(), masks[row].double()
        p = 1 / (1 + torch.exp(-x))
        right = torch.where(masks[row], p, 1 - p)
        focal.append((0.8 * (1 - right) ** 2 * -right.log()).mean())
        dice.append(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
        real = ((x > 0) & masks[row]).sum() / ((x > 0) | masks[row]).sum()
        iou.append((iou_pred[row, 0] - real) ** 2)
    expected = [float(torch.stack(part).mean()) for part in (focal, dice, iou)]
    np.testing.assert_allclose([parts.focal, parts.dice, parts.iou], expected, rtol=1e-5)
    assert float(parts.total) == pytest.approx(expected[0] + 10 * expected[1] + expected[2], rel=1e-5)


def test_mean_loss_does_not_depend_on_the_number_of_images_and_the_reference_does() -> None:
    one = random_case(1)
    twice = tuple(part.repeat(2, *[1] * (part.ndim - 1)) for part in one)
    assert torch.allclose(mask_loss(*twice).total, mask_loss(*one).total)
    focal = mask_loss(*twice, reduction="reference").focal
    assert torch.allclose(focal, 2 * mask_loss(*one, reduction="reference").focal)


def test_mean_loss_keeps_its_gradient_where_the_reference_loses_it() -> None:
    masks, iou_pred = torch.ones(1, 2, 2), torch.zeros(1, 1)
    grads = {}
    for reduction in ("mean", "reference"):
        logits = torch.full((1, 1, 2, 2), -200.0, requires_grad=True)
        parts = mask_loss(logits, masks, iou_pred, reduction)
        parts.total.backward()
        assert torch.isfinite(parts.total)
        assert logits.grad is not None
        grads[reduction] = logits.grad.abs().max()
    assert grads["reference"] == 0
    assert grads["mean"] == pytest.approx(0.8 / 4)


def test_foreground_of_the_iou_target_differs_between_the_profiles() -> None:
    logits, masks = torch.full((1, 1, 4, 4), 0.3), torch.ones(1, 4, 4)
    assert float(mask_loss(logits, masks, torch.ones(1, 1), "mean").iou) == 0
    assert float(mask_loss(logits, masks, torch.ones(1, 1), "reference").iou) == 1


def test_two_empty_masks_have_iou_one_in_the_default_profile() -> None:
    logits, masks = torch.full((1, 1, 4, 4), -5.0), torch.zeros(1, 4, 4)
    assert float(mask_loss(logits, masks, torch.ones(1, 1), "mean").iou) == 0
    assert float(mask_loss(logits, masks, torch.ones(1, 1), "reference").iou) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_float32_whatever_the_logits(dtype: torch.dtype) -> None:
    logits, masks, iou_pred = random_case(dtype=dtype)
    parts = mask_loss(logits, masks, iou_pred)
    assert parts.total.dtype == torch.float32
    assert torch.allclose(parts.total, mask_loss(logits.float(), masks, iou_pred).total)


def test_gradient_of_the_mean_loss_by_finite_differences() -> None:
    logits, masks, iou_pred = random_case(2)
    logits.requires_grad_()
    mask_loss(logits, masks, iou_pred).total.backward()
    assert logits.grad is not None
    step = 1e-2
    for index in ((0, 0, 1, 2), (1, 0, 5, 4)):
        values = []
        for sign in (-1, 1):
            moved = logits.detach().clone()
            moved[index] += sign * step
            values.append(mask_loss(moved, masks, iou_pred).total)
        assert float(values[1] - values[0]) / (2 * step) == pytest.approx(float(logits.grad[index]), rel=2e-2)


def test_wrong_shapes_and_reductions_are_refused() -> None:
    logits, masks, iou_pred = random_case()
    with pytest.raises(ValueError, match=r"masks \(2, 6, 5\)"):
        mask_loss(logits, masks[:2], iou_pred)
    with pytest.raises(ValueError, match=r"iou_pred is \(3,\)"):
        mask_loss(logits, masks, iou_pred[:, 0])
    with pytest.raises(ValueError, match="'sum'"):
        mask_loss(logits, masks, iou_pred, "sum")  # type: ignore[arg-type]


def test_upsampling_is_the_official_bilinear_or_nearest() -> None:
    logits = random_case()[0][..., :5, :]
    bilinear = resize_logits(logits, 20, "bilinear")
    assert torch.equal(bilinear, F.interpolate(logits, (20, 20), mode="bilinear", align_corners=False))
    nearest = resize_logits(logits, 20, "nearest")
    assert torch.equal(nearest, logits.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert not torch.equal(bilinear, nearest)
