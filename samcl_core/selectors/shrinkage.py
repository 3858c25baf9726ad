"""One covariance shared by all classes, shrunk in closed form, and the quantiles that distances are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = [
    "MIN_INTENSITY",
    "Shrunk",
    "chi2_quantile",
    "normal_bound",
    "shrink",
    "student_quantile",
    "whitening",
]

MIN_INTENSITY = 0.01
"""Least share of the isotropic target: directions in which a few embeddings never vary must not get all the weight."""
_TURNED = 0.2


@dataclass(frozen=True)
class Shrunk:
    """A shrunk covariance as its inverse Cholesky factor.

    Attributes:
        whiten: (C, C) float64 of ``whitening``; squared Mahalanobis distance of a residual r is ``|whiten @ r|^2``.
        intensity: share of the isotropic target, 0 to 1.
        dof: number of embeddings minus number of classes.
        floor: variance that the isotropic target adds in every direction.
    """

    whiten: Tensor
    intensity: float
    dof: int
    floor: float

    @property
    def scale(self) -> float:
        """What the scatter is multiplied with."""
        return (1 - self.intensity) / self.dof

    def distance2(self, residuals: Tensor) -> Tensor:
        """(n, C) float64 residuals to (n,) squared Mahalanobis distances."""
        return (residuals @ self.whiten.T).square().sum(1)

    def unseen(self, inside: float, fitted: float | None = None) -> float:
        """Mean squared distance of a class's next images, from that of the images which this covariance was made of.

        The mean over images left out (Sherman and Morrison, see ``held_out_distance2``), up to four times as much. An
        image left out takes away what the covariance holds of it, and turns the axes: a fifth of what it would take
        from a whole covariance is added for that (measured: without it, one image in seven of a class was novel).

        Args:
            inside: mean squared distance of the images.
            fitted: the part of it along axes that the covariance was fitted to; ``None`` for all of it.
        """
        whole = self._gained(inside)
        if fitted is None:
            return inside + whole
        part = self._gained(min(fitted, inside))
        return inside + part + _TURNED * (whole - part)

    def _gained(self, inside: float) -> float:
        lever = min(self.scale * inside, 0.75)
        return inside * lever / (1 - lever)


def whitening(scatter: Tensor, scale: float, floor: float) -> Tensor:
    """Inverse Cholesky factor (C, C) of ``scale * scatter + floor * identity``; all float64, ``floor`` > 0."""
    covariance = scale * scatter
    covariance.diagonal().add_(floor)
    eye = torch.eye(len(scatter), dtype=torch.float64)
    root: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), eye, upper=False)
    return root


def shrink(scatter: Tensor, num: int, num_classes: int, fourth: float, least: float = MIN_INTENSITY) -> Shrunk | None:
    """Covariance of residuals, shrunk towards a multiple of the identity (Ledoit and Wolf 2004, equation 14).

    Args:
        scatter: (C, C) float64, sum over all embeddings of r r^T, r being the residual from the class mean.
        num: how many embeddings are in the sum.
        num_classes: how many class means were taken off.
        fourth: sum over all embeddings of |r|^4.
        least: intensity that the covariance gets at least.

    Returns:
        The shrunk covariance; ``None`` when nothing varies (one embedding a class, or all alike).
    """
    size, dof = scatter.shape[0], num - num_classes
    trace = float(scatter.trace())
    if dof < 1 or trace <= 0:
        return None
    second = float(scatter.square().sum()) / num**2
    spread = second / size - (trace / num / size) ** 2
    error = (fourth / num - second) / num / size
    intensity = min(max(error / spread, least), 1.0) if spread > 0 else 1.0
    scale, floor = (1 - intensity) / dof, intensity * trace / dof / size
    return Shrunk(whitening(scatter, scale, floor), intensity, dof, floor)


def student_quantile(quantile: float, dof: int) -> float:
    """Quantile of Student's t: exact for 2 degrees of freedom, else Cornish and Fisher's expansion (2 % at dof 3).

    Raises:
        ValueError: ``dof`` is below 2.
    """
    if dof < 2:
        raise ValueError(f"dof is {dof}, expected at least 2")
    if dof == 2:
        return (2 * quantile - 1) / math.sqrt(2 * quantile * (1 - quantile))
    z = NormalDist().inv_cdf(quantile)
    return (
        z
        + (z**3 + z) / (4 * dof)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
    )


def normal_bound(mean: float, dof: float, quantile: float) -> float:
    """Quantile of the squared length of a normal vector with covariance M, by its first two moments.

    The squared length is a weighted sum of chi-squared variables; Satterthwaite's scaled chi-squared has the same mean
    and variance.

    Args:
        mean: tr(M).
        dof: tr(M)^2 / tr(M^2), the effective degrees of freedom.
        quantile: 0 to 1.
    """
    return mean / dof * chi2_quantile(quantile, dof)


def chi2_quantile(quantile: float, dof: float) -> float:
    """Quantile of chi-squared with a real number of degrees of freedom (Wilson and Hilferty's cube)."""
    spread = 2 / (9 * dof)
    return float(dof * max(1 - spread + NormalDist().inv_cdf(quantile) * math.sqrt(spread), 0.05) ** 3)
