"""The point-sampled loss, against plain loops over the points and scipy's bilinear interpolation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from samcl_core.training import point_loss
from samcl_core.training.draws import stream_of
from samcl_core.training.point_loss import NUM_POINTS, sample_at, uncertain_points


def scene(count: int = 3, small: int = 12, large: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(5)
    logits = torch.from_numpy(draw.standard_normal((count, 1, small, small + 3)).astype(np.float32) * 4)
    masks = torch.from_numpy((draw.random((count, large, large + 7)) < 0.4).astype(np.uint8))
    return logits, masks


def bilinear(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values at (N, 2) points x, y in 0..1: pixel centres at (index + 0.5) / size, 0 outside."""
    height, width = image.shape
    rows, columns = points[:, 1] * height - 0.5, points[:, 0] * width - 0.5
    return map_coordinates(image.astype(np.float64), [rows, columns], order=1, mode="grid-constant", cval=0.0)


def loss_by_hand(logits: np.ndarray, masks: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and Dice, point by point."""
    bce, dice = [], []
    for logit, mask, places in zip(logits, masks, points, strict=True):
        entropy = product = total_p = total_t = 0.0
        for x, t in zip(bilinear(logit[0], places), bilinear(mask, places), strict=True):
            p = 1 / (1 + math.exp(-x))
            entropy -= t * math.log(p) + (1 - t) * math.log(1 - p)
            product, total_p, total_t = product + p * t, total_p + p, total_t + t
        bce.append(entropy / len(places))
        dice.append(1 - (2 * product + 1) / (total_p + total_t + 1))
    return sum(bce) / len(bce), sum(dice) / len(dice)


def test_values_at_points_are_scipy_s() -> None:
    logits, _ = scene()
    points = torch.from_numpy(np.random.default_rng(0).random((3, 500, 2), dtype=np.float32))
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.001]])
    found = sample_at(logits, points)
    assert found.shape == (3, 500)
    for row in range(3):
        np.testing.assert_allclose(found[row], bilinear(logits[row, 0].numpy(), points[row].numpy()), atol=2e-5)


def test_the_loss_is_that_of_plain_loops() -> None:
    logits, masks = scene()
    parts = point_loss(logits, masks, stream_of("test", 1), num_points=400)
    points = uncertain_points(logits, stream_of("test", 1), 400)
    bce, dice = loss_by_hand(logits.numpy(), masks.numpy(), points.numpy())
    assert parts.values() == pytest.approx({"bce": bce, "dice": dice, "total": bce + dice}, rel=1e-5)


def test_three_quarters_are_the_most_uncertain_of_three_times_as_many() -> None:
    logits, _ = scene()
    points = uncertain_points(logits, stream_of("test", 2), 400)
    drawn = stream_of("test", 2).random((3, 3 * 400 + 100, 2), dtype=np.float32)
    assert points.shape == (3, 400, 2)
    for row in range(3):
        near = np.abs(bilinear(logits[row, 0].numpy(), drawn[row, :1200]))
        expected = drawn[row, :1200][np.argsort(near)[:300]]
        assert {tuple(place) for place in points[row, :300].tolist()} == {tuple(place) for place in expected.tolist()}
        np.testing.assert_array_equal(points[row, 300:], drawn[row, 1200:])


def test_the_papers_number_of_points() -> None:
    logits, masks = scene(1)
    assert NUM_POINTS == 12_544 == uncertain_points(logits, stream_of("test")).shape[1]
    one, again, other = (point_loss(logits, masks, stream_of("test", seed)).values() for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_perfect_mask_costs_nothing_and_gradients_point_to_it(dtype: torch.dtype) -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 16:48, 16:48] = 1
    perfect = (masks[:, None].float() * 2 - 1) * 30
    # Where logits change sign between two pixels the bilinear one is near 0, and there most points lie.
    assert point_loss(perfect.to(dtype), masks, stream_of("test")).values()["dice"] < 0.15
    logits = torch.zeros(2, 1, 64, 64, dtype=dtype, requires_grad=True)
    point_loss(logits, masks, stream_of("test")).total.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0, 20:44, 20:44] <= 0).all() and (logits.grad[:, 0, :12] >= 0).all()


def test_empty_masks_are_finite() -> None:
    logits = torch.full((1, 1, 8, 8), -200.0, requires_grad=True)
    parts = point_loss(logits, torch.zeros(1, 8, 8), stream_of("test"))
    parts.total.backward()
    assert parts.values() == pytest.approx({"bce": 0.0, "dice": 0.0, "total": 0.0}, abs=1e-6)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 8, 8)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits \(1, 1, 8, 8\) and masks \("):
        point_loss(torch.zeros(1, 1, 8, 8), torch.zeros(shape), stream_of("test"))
