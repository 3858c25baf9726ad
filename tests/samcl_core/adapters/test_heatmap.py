"""The prompt heat-map against OpenCV itself, and its rules for labels and borders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from samcl_core.adapters.augmodule.heatmap import pool_heatmap, render_heatmap


def with_opencv(points: np.ndarray, labels: np.ndarray, signed: bool) -> np.ndarray:
    maps = []
    for row, names in zip(points, labels, strict=True):
        hot, cold = np.zeros((64, 64)), np.zeros((64, 64))
        for (x, y), label in zip(row, names, strict=True):
            cell = (int(int(y) * 64 / 1024), int(int(x) * 64 / 1024))
            if label == 1 or (label == 0 and not signed):
                hot[cell] = 1
            elif label == 0:
                cold[cell] = 1
        maps.append(cv2.GaussianBlur(hot - cold, (9, 9), 0) * 255)
    return np.stack(maps)


@pytest.mark.parametrize("signed", [True, False])
def test_equals_opencv(signed: bool) -> None:
    draw = np.random.default_rng(0)
    points = draw.uniform(0, 1024, (40, 6, 2)).astype(np.float32)
    points[:5] = np.floor(points[:5] / 1000) * 1023
    labels = draw.integers(-1, 2, (40, 6))
    heat = render_heatmap(torch.from_numpy(points), torch.from_numpy(labels), signed=signed)
    assert heat.shape == (40, 64, 64)
    assert heat.dtype == torch.float32
    np.testing.assert_allclose(heat.numpy(), with_opencv(points, labels, signed), rtol=0, atol=1e-5)


def test_row_is_y() -> None:
    heat = render_heatmap(torch.tensor([[[960.0, 64.0]]]), torch.ones(1, 1), signed=True)[0]
    assert divmod(int(heat.argmax()), 64) == (4, 60)


def test_points_outside_land_at_the_border() -> None:
    inside = render_heatmap(torch.tensor([[[0.0, 1023.0]]]), torch.ones(1, 1), signed=True)
    outside = render_heatmap(torch.tensor([[[-50.0, 3000.0]]]), torch.ones(1, 1), signed=True)
    assert torch.equal(inside, outside)


def test_no_points_is_a_cold_map() -> None:
    assert not render_heatmap(torch.zeros(2, 0, 2), torch.zeros(2, 0), signed=True).any()
    padding = torch.full((2, 3), -1)
    for signed in (True, False):
        assert not render_heatmap(torch.full((2, 3, 2), 500.0), padding, signed=signed).any()


def test_both_labels_in_one_cell_cancel() -> None:
    points = torch.tensor([[[500.0, 500.0], [501.0, 501.0]]])
    assert not render_heatmap(points, torch.tensor([[1, 0]]), signed=True).any()
    assert render_heatmap(points, torch.tensor([[1, 0]]), signed=False).any()


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_pooling_keeps_the_mean(grid: int) -> None:
    heat = render_heatmap(torch.tensor([[[500.0, 300.0]]]), torch.ones(1, 1), signed=True)
    pooled = pool_heatmap(heat, grid)
    assert pooled.shape == (1, grid, grid)
    torch.testing.assert_close(pooled.mean(), heat.mean())
    assert pool_heatmap(heat, 64) is heat
