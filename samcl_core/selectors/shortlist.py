"""Which of many classes may decide about an image, without measuring the distance to each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FEW", "Shortlist"]

FEW = 32
"""Up to so many classes it takes no longer to measure all distances."""
_NUM_AXES = 93
_MARGIN = 80.0
"""A class whose squared distance is so much larger than the least has e^-40 of the nearest one's probability."""
_LARGEST = 1e15
"""Squares of larger coordinates may be too large for single precision."""


class Shortlist:
    """Lower bounds of all squared distances rule out the classes that cannot decide, whatever the classes are.

    A class decides if it has a part of the probability, or may have the least distance in units of its threshold. No
    other changes the choice, the confidence or the novelty. Most often the nearest class decides alone, and a product
    with an eighth of the coordinates shows it.
    """

    def __init__(self, centres: Tensor, whiten: Tensor, limits: Tensor) -> None:
        """See ``of``; ``limits`` are squared thresholds."""
        self._root = _leading_axes(centres @ whiten.T).T @ whiten
        self._centres, self._limits = centres @ self._root.T, limits
        # Rounded up, and finite: 0 times infinity is no bound.
        self._rough_limits = (limits * (1 + 1e-6)).float().clamp_max(torch.finfo(torch.float32).max)
        self._widest = float(self._rough_limits.max())
        rest = self._centres[:, _NUM_AXES:].norm(dim=1, keepdim=True)
        self._coarse = _Bounds(torch.cat([self._centres[:, :_NUM_AXES], rest], 1), self._centres)
        self._fine = _Bounds(self._centres, self._centres)

    @staticmethod
    def of(centres: Tensor, whiten: Tensor, thresholds: Tensor) -> Shortlist | None:
        """The short list of some classes, ``None`` where all distances have to be measured.

        Args:
            centres: (K, C) float64 around the origin.
            whiten: (C, C) float64, distances are lengths after it.
            thresholds: (K,) float64 distances.
        """
        # On a GPU all are measured in the time that it takes to start the operations of a short list.
        if len(centres) <= FEW or centres.device.type != "cpu":
            return None
        found = Shortlist(centres, whiten, thresholds.square())
        return found if bool((found._centres.abs() < _LARGEST).all()) else None

    def near(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """All classes that decide about (B, C) float64 points around the same origin, and maybe others.

        Returns:
            Each point's nearest class (B, 1) int64 and its float64 distance, where it decides alone for every point;
            else classes (k,) int64 for all points, ascending, and ``None``.
        """
        points = points @ self._root.T
        # A cube around all centres: what is outside of it is nearer to them on its surface.
        rough = points.float().clamp_(-_LARGEST, _LARGEST)
        lengths = torch.linalg.vector_norm(rough, dim=1, keepdim=True)
        rest = torch.linalg.vector_norm(rough[:, _NUM_AXES:], dim=1, keepdim=True)
        lower = self._coarse.bounds(torch.cat([rough[:, :_NUM_AXES], rest], 1), lengths)
        least, nearest = lower.topk(2, largest=False)
        squares, fits = self._measured(points, nearest[:, 0])
        if bool((least[:, 1] > torch.maximum(squares + _MARGIN, fits * self._widest)).all()):
            return nearest[:, :1], squares.sqrt_()[:, None]
        found = self._open(points, lower)
        if len(found) > FEW:
            found = self._open(points, self._fine.bounds(rough, lengths))
        return found, None

    def _measured(self, points: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) squared distances to one class each, and the same in units of its squared threshold."""
        between = points - self._centres.index_select(0, classes)
        squares = torch.linalg.vecdot(between, between)
        return squares, squares / self._limits.index_select(0, classes)

    def _open(self, points: Tensor, lower: Tensor) -> Tensor:
        """(k,) two classes a point whose distance is measured, and those whose lower bound leaves them a chance."""
        nearest, fitting = lower.argmin(1), (lower / self._rough_limits).argmin(1)
        near, fit = self._measured(points, nearest), self._measured(points, fitting)
        squares, fits = torch.minimum(near[0], fit[0]), torch.minimum(near[1], fit[1])
        reach = torch.maximum((squares + _MARGIN).float()[:, None], fits.float()[:, None] * self._rough_limits)
        # Turned round, a point that is no number would close all classes.
        is_open = ~((lower - reach).amin(0) > 0)
        is_open[nearest] = is_open[fitting] = True
        return is_open.nonzero()[:, 0]


class _Bounds:
    """Lower bounds of squared distances in single precision, from coordinates that bring points no farther apart.

    The first coordinates and the length of the others are such: two vectors of lengths r and s are at least ``|r - s|``
    apart, so that their lengths bound the distance as coordinates would.
    """

    def __init__(self, rows: Tensor, centres: Tensor) -> None:
        """(K, n) float64 coordinates of (K, C) centres."""
        norms = centres.square().sum(1)
        # Sums of n products are right to n times the rounding (Higham 2002, section 3.1); there are three such sums.
        self._kept = 1 - 2 * (centres.shape[1] + 16) * torch.finfo(torch.float32).eps
        self._factor, self._norms = (-2 * rows).float().T.contiguous(), (self._kept * norms).float()

    def bounds(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(B, K) float32 for (B, n) coordinates of points of (B, 1) lengths."""
        return torch.addmm(self._norms, rows, self._factor).add_(lengths.square() * self._kept)


def _leading_axes(centres: Tensor) -> Tensor:
    """(C, C) float64 with orthonormal columns, the first of which hold much of the length of (K, C) centres.

    One step of subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4); any axes would do.
    """
    shape = (centres.shape[1], min(_NUM_AXES, centres.shape[1]))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes: Tensor = torch.linalg.qr(centres.T @ (centres @ drawn), mode="complete").Q
    return axes
