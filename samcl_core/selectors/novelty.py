"""Does an image fit any known class? Mahalanobis distance to the class means against a calibrated threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samcl_core.selectors.shortlist import Shortlist
from samcl_core.selectors.shrinkage import Shrunk, shrink, student_quantile

__all__ = ["Deciding", "NoveltyGate", "held_out_bound", "held_out_distance2"]

_PRIOR_SPREAD = 0.5
"""Standard deviation of log squared distances before any was seen: that of chi-squared with 8 degrees of freedom."""
_PRIOR_DOF = 3
_MIN_SHARE = 0.1
"""A class of near-copies keeps at least this share of the typical squared distance of all classes."""


@dataclass(frozen=True)
class Deciding:
    """The classes that some images may belong to.

    Attributes:
        distances: (B, k) float64 to their means.
        thresholds: (B, k) or (k,) float64 of theirs.
        classes: (B, k) or (k,) int64, ascending; ``None`` for all.
    """

    distances: Tensor
    thresholds: Tensor
    classes: Tensor | None

    @property
    def novelty(self) -> Tensor:
        """(B,) float32 >= 0, the least distance in units of the class's threshold, over all classes."""
        return (self.distances / self.thresholds).amin(1).float()


class NoveltyGate:
    """Class means under one shared shrunk covariance, and how far from its mean a class's own images lie.

    With few embeddings the threshold is generous: an unknown image that slips through costs one poor mask, a gate
    that rejects everything costs the whole module.
    """

    def __init__(self, means: Tensor, whiten: Tensor, thresholds: Tensor) -> None:
        """Take (K, C) means, (C, C) whitening matrix and (K,) distances; float32 is enough, arithmetic is float64."""
        self.means, self.whiten, self.thresholds = means.double(), whiten.double(), thresholds.double()
        # One point amid the classes, the same in every order of arrival, and not moved by a class far away.
        self._origin = self.means.median(0).values
        centres = self.means - self._origin
        self._centres = centres @ self.whiten.T
        self._shortlist = Shortlist.of(centres, self.whiten, self.thresholds)

    @staticmethod
    def fit(classes: Mapping[str, Tensor], quantile: float) -> NoveltyGate | None:
        """The gate of some classes.

        Args:
            classes: name to (n, C) embeddings, in the order of the thresholds.
            quantile: share of a class's own, unseen images that its threshold shall let in.

        Returns:
            The gate, or ``None`` when there is nothing to measure distances with: no class has two different
            embeddings. Then everything has to be let in.
        """
        rows = {name: embeddings.double().cpu() for name, embeddings in classes.items()}
        means = {name: x.mean(0) for name, x in rows.items()}
        residuals = {name: x - means[name] for name, x in rows.items()}
        ordered = [residuals[name] for name in sorted(residuals)]
        if not ordered:
            return None
        everything = torch.cat(ordered)
        fourth = float(everything.square().sum(1).square().sum())
        shared = shrink(everything.T @ everything, len(everything), len(rows), fourth)
        if shared is None:
            return None
        held_out = {name: held_out_distance2(r, shared) for name, r in residuals.items()}
        pool = torch.cat([held_out[name] for name in sorted(held_out)])
        bounds = [held_out_bound(held_out[name], quantile, pool) for name in rows]
        thresholds = torch.tensor(bounds, dtype=torch.float64).sqrt()
        return NoveltyGate(torch.stack(list(means.values())).float(), shared.whiten.float(), thresholds)

    def novelty(self, embeddings: Tensor) -> Tensor:
        """(B, C) to (B,) float32 >= 0: distance to the best fitting class mean, in units of that class's threshold."""
        return self.deciding(embeddings).novelty

    def deciding(self, embeddings: Tensor) -> Deciding:
        """Distances of (B, C) embeddings to the classes that the choice depends on."""
        points = embeddings.double() - self._origin
        classes = distances = None
        if self._shortlist is not None and points.device.type == "cpu":
            classes, distances = self._shortlist.near(points)
        if distances is None:
            distances = self._lengths(points, classes)
        thresholds = self.thresholds if classes is None else self.thresholds.take(classes)
        return Deciding(distances, thresholds, classes)

    def distances(self, embeddings: Tensor) -> Tensor:
        """(B, C) to (B, K) float64 Mahalanobis distances to every class mean."""
        return self._lengths(embeddings.double() - self._origin)

    def _lengths(self, points: Tensor, classes: Tensor | None = None) -> Tensor:
        centres = self._centres if classes is None else self._centres[classes]
        # The expanded square cancels where a class is close.
        return torch.cdist(points @ self.whiten.T, centres, compute_mode="donot_use_mm_for_euclid_dist")

    def to(self, device: Any) -> NoveltyGate:
        """Move the tensors; returns itself."""
        self.means, self.whiten = self.means.to(device), self.whiten.to(device)
        self.thresholds, self._centres = self.thresholds.to(device), self._centres.to(device)
        self._origin = self._origin.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Means and metric as float32 CPU tensors, for storage beside ``limits``."""
        return {"means": self.means.float().cpu(), "whiten": self.whiten.float().cpu()}

    def limits(self, names: Sequence[str]) -> dict[str, float | None]:
        """The thresholds by class name, as JSON values; ``None`` for one that lets everything in."""
        values = self.thresholds.tolist()
        return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}

    @staticmethod
    def stored(tensors: Mapping[str, Tensor], limits: Mapping[str, float | None], names: Sequence[str]) -> NoveltyGate:
        """The gate that ``tensors`` and ``limits`` came from.

        Raises:
            KeyError: a tensor or a threshold is missing.
            ValueError: their sizes do not fit together.
        """
        means, whiten = tensors["means"], tensors["whiten"]
        found = [means.shape[0], *whiten.shape]
        if found != [len(names), means.shape[1], means.shape[1]]:
            raise ValueError(
                f"gate tensors are {tuple(means.shape)} and {tuple(whiten.shape)}, not for {len(names)} classes"
            )
        values = [math.inf if limits[name] is None else limits[name] for name in names]
        return NoveltyGate(means, whiten, torch.tensor(values, dtype=torch.float64))


def held_out_distance2(residuals: Tensor, shared: Shrunk) -> Tensor:
    """Squared distances of a class's own embeddings as if each had been left out of mean and covariance.

    With n embeddings, q = r^T P r and c r r^T the embedding's own part of the covariance, leaving it out gives
    (n / (n-1))^2 q / (1 - c q) by Sherman and Morrison (the shrinkage intensity is kept).

    Args:
        residuals: (n, C) float64, from the class mean over all n.
        shared: covariance that these residuals are part of.

    Returns:
        (n,) float64; empty for n = 1, where nothing is left to compare with.
    """
    num = len(residuals)
    if num < 2:
        return residuals.new_empty(0)
    own = (1 - shared.intensity) / shared.dof * num / (num - 1)
    inside = shared.distance2(residuals)
    return (num / (num - 1)) ** 2 * inside / (1 - own * inside).clamp_min(1e-12)


def held_out_bound(held_out: Tensor, quantile: float, pool: Tensor) -> float:
    """Upper bound for the squared distance of the next image of a class.

    With enough embeddings it is an order statistic, without any assumption on the distribution: the next image lies
    inside with at least the asked probability. With fewer it is the upper prediction bound of a normal distribution of
    the logarithms (Student's t with a prior spread), never below the largest seen.

    Args:
        held_out: (n,) float64 from ``held_out_distance2``; may be empty.
        quantile: the asked probability.
        pool: the same of all classes together, not empty.
    """
    typical = float(pool.clamp_min(1e-12).log().mean())
    floor = _MIN_SHARE * math.exp(typical)
    num = len(held_out)
    if num == 0:
        # The mean is one embedding: the next one is twice as far from it (in squares) as from the true mean.
        return 2 * math.exp(typical + student_quantile(quantile, 2) * _PRIOR_SPREAD)
    ordered = held_out.clamp_min(floor).sort().values
    rank = math.ceil((num + 1) * quantile)
    if rank <= num:
        return float(ordered[rank - 1])
    logs = ordered.log()
    squares = float((logs - logs.mean()).square().sum()) + _PRIOR_DOF * _PRIOR_SPREAD**2
    spread = math.sqrt(squares / (num - 1 + _PRIOR_DOF) * (1 + 1 / num))
    bound = float(logs.mean()) + student_quantile(quantile, max(num - 1, 2)) * spread
    return max(math.exp(min(bound, 600.0)), float(ordered[-1]))
