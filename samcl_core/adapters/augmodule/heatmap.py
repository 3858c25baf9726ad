"""The prompt heat-map: points as blurred dots on a 64 x 64 picture of the 1024 frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.backbones.base import FRAME_PX

__all__ = ["HEATMAP_CELLS", "pool_heatmap", "render_heatmap"]

HEATMAP_CELLS = 64
_TAPS = (4, 13, 30, 51, 60, 51, 30, 13, 4)
_SCALE = 255.0


def _blur_matrix(size: int) -> Tensor:
    """(size, size) float32 row operator of OpenCV's fixed 9-tap blur with the reflect-101 border.

    ``cv2.GaussianBlur(…, (9, 9), 0)`` takes this table / 256, not a sampled Gaussian. Every sum is a multiple of
    1 / 65536 below 2, hence exact in float32 (and in TF32).
    """
    matrix = torch.zeros(size, size)
    radius = len(_TAPS) // 2
    for row in range(size):
        for offset, tap in enumerate(_TAPS):
            column = abs(row + offset - radius)
            column = 2 * (size - 1) - column if column >= size else column
            matrix[row, column] += tap / 256
    return matrix


_BLUR = _blur_matrix(HEATMAP_CELLS)


def render_heatmap(points: Tensor, labels: Tensor, *, signed: bool) -> Tensor:
    """Heat-maps of a batch, on the device of ``points``.

    A point sets cell (floor(y * 64 / 1024), floor(x * 64 / 1024)), coordinates truncated to whole pixels first;
    several points in a cell count once. Then OpenCV's 9 x 9 blur, times 255: an isolated point peaks at 14.008.

    Args:
        points: (B, N, 2) x, y in the 1024 frame; coordinates outside land in the border cells.
        labels: (B, N) 1 foreground, 0 background, -1 padding (leaves no trace).
        signed: background points set their cell to -1 (0 where a foreground point shares it) instead of 1.

    Returns:
        (B, 64, 64) float32, rows are y.
    """
    if not signed:
        return _blurred(_cells(points, labels >= 0))
    return _blurred(_cells(points, labels > 0) - _cells(points, labels == 0))


def _cells(points: Tensor, used: Tensor) -> Tensor:
    """(B, 64, 64) float32: 1 where a used point lies."""
    column_row = (points.float().trunc() * (HEATMAP_CELLS / FRAME_PX)).trunc().long().clamp(0, HEATMAP_CELLS - 1)
    index = column_row[..., 1] * HEATMAP_CELLS + column_row[..., 0]
    grid = torch.zeros(len(points), HEATMAP_CELLS**2, device=points.device)
    grid = grid.scatter_reduce(1, index, used.to(grid.dtype), "amax")
    return grid.reshape(-1, HEATMAP_CELLS, HEATMAP_CELLS)


def _blurred(grid: Tensor) -> Tensor:
    with torch.autocast(grid.device.type, enabled=False):
        blur = _BLUR.to(grid.device)
        return blur @ grid @ blur.T * _SCALE


def pool_heatmap(heat: Tensor, grid: int) -> Tensor:
    """(B, 64, 64) heat-maps averaged down to (B, grid, grid), the token grid of the backbone."""
    if heat.shape[-1] == grid:
        return heat
    return F.adaptive_avg_pool2d(heat[:, None], grid)[:, 0]
