"""A selector in closed form: class means and one shared shrunk covariance. No stored embedding, no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.base import Choice
from samcl_core.selectors.choosing import check_embeddings, choice_of
from samcl_core.selectors.novelty import NoveltyGate
from samcl_core.selectors.shrinkage import Shrunk, normal_bound, shrink, student_quantile, whitening
from samcl_core.selectors.statistics import Statistics

__all__ = ["GaussianSelector", "Metric", "fit_gaussian"]

_OPEN = math.inf


@dataclass(frozen=True)
class Metric:
    """The shared covariance: ``scale`` times the scatter that the state holds of the classes, plus ``floor`` in every
    direction. A bank stores both numbers, so that what it answers does not depend on the formulas that gave them."""

    scale: float
    floor: float

    def whiten(self, statistics: Statistics, names: Sequence[str]) -> Tensor:
        """(C, C) float64: squared distances are squared lengths after it."""
        return whitening(statistics.scatter(names), self.scale, self.floor)


class GaussianSelector:
    """Linear discriminant: the class with the nearest mean under one metric, all classes equally likely before.

    Thresholds of the classes are always there; whether an image beyond all of them is plain is ``has_gate``.
    """

    kind = "gaussian"

    def __init__(
        self,
        metric: Metric,
        distances: NoveltyGate,
        domains: Sequence[str],
        natural: Sequence[str],
        *,
        has_gate: bool = True,
    ) -> None:
        """``distances`` holds the root of ``metric``, the means and the thresholds, learnt domains first, then natural
        classes."""
        self.domains, self.natural, self.has_gate = tuple(domains), tuple(natural), has_gate
        self._metric, self._distances = metric, distances

    @torch.no_grad()
    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) float embeddings to a choice each.

        Raises:
            BankError: the embeddings have another width than those it was fitted on.
        """
        check_embeddings(embeddings, self._distances.means.shape[1])
        near = self._distances.deciding(embeddings)
        # Distances of hundreds of dimensions differ by hundreds; relative to the best, exp() stays finite.
        log_probabilities = (-0.5 * near.distances.square()).log_softmax(1)
        novelty = near.novelty if self.has_gate else torch.zeros_like(near.distances[:, 0], dtype=torch.float32)
        return choice_of(log_probabilities, len(self.domains), novelty, near.classes)

    def to(self, device: Any) -> GaussianSelector:
        """Move the tensors; returns itself."""
        self._distances.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Class names, the metric's two numbers and the thresholds; the classes themselves are in the state."""
        values = {
            "kind": self.kind,
            "domains": list(self.domains),
            "natural": list(self.natural),
            "has_gate": self.has_gate,
            "scale": self._metric.scale,
            "floor": self._metric.floor,
            "thresholds": self._distances.limits((*self.domains, *self.natural)),
        }
        return values, {}

    @staticmethod
    def from_state(values: Mapping[str, Any], statistics: object) -> GaussianSelector:
        """The selector that ``state`` came from.

        Args:
            values: of ``state``.
            statistics: of its classes; there may be more.

        Raises:
            KeyError: a value or a class is missing.
            ValueError: there are no statistics, or the metric is none.
        """
        if not isinstance(statistics, Statistics):
            raise ValueError("its classes are in the state of the bank, which is missing")
        metric = Metric(float(values["scale"]), float(values["floor"]))
        if not (0 <= metric.scale < math.inf and 0 < metric.floor < math.inf):
            raise ValueError(f"scale is {metric.scale} and floor {metric.floor}")
        names = (*values["domains"], *values["natural"])
        limits = [math.inf if values["thresholds"][name] is None else values["thresholds"][name] for name in names]
        return _selector(
            statistics, metric, limits, values["domains"], values["natural"], has_gate=bool(values["has_gate"])
        )


def _selector(
    statistics: Statistics,
    metric: Metric,
    limits: Sequence[float],
    domains: Sequence[str],
    natural: Sequence[str],
    *,
    has_gate: bool,
    whiten: Tensor | None = None,
) -> GaussianSelector:
    names = (*domains, *natural)
    means = torch.stack([statistics.classes[name].mean for name in names])
    root = metric.whiten(statistics, names) if whiten is None else whiten
    gate = NoveltyGate(means, root, torch.tensor(limits, dtype=torch.float64))
    return GaussianSelector(metric, gate, domains, natural, has_gate=has_gate)


def fit_gaussian(statistics: Statistics, *, has_gate: bool) -> GaussianSelector:
    """The selector of some statistics. Metric, means and thresholds do not depend on the order of arrival.

    Raises:
        BankError: there is no class.
    """
    classes = statistics.classes
    if not classes:
        raise BankError("a gaussian selector needs at least one class, found none")
    fourth = math.fsum(summary.fourth for summary in classes.values())
    num = sum(summary.num for summary in classes.values())
    shared = shrink(statistics.scatter(classes), num, len(classes), fourth)
    # Without any spread the plain Euclidean metric is as good as another, and every threshold stays open.
    metric = Metric(0.0, 1.0) if shared is None else Metric(shared.scale, shared.floor)
    bounds = dict.fromkeys(classes, _OPEN) if shared is None else _bounds(statistics, shared)
    limits = [math.sqrt(bounds[name]) for name in (*statistics.domains, *statistics.natural)]
    whiten = None if shared is None else shared.whiten
    return _selector(
        statistics, metric, limits, statistics.domains, statistics.natural, has_gate=has_gate, whiten=whiten
    )


def _bounds(statistics: Statistics, shared: Shrunk) -> dict[str, float]:
    """Squared distance that each class's next image stays within: normal theory in this metric, times the class's tail.

    With M the covariance of a class in this metric, the degrees of freedom are tr(M)^2 / tr(M^2). A class's own are
    estimated from few vectors, so these go half the way to those of all classes together.
    """
    quantile, classes = statistics.quantile, statistics.classes
    varied = [name for name in sorted(classes) if classes[name].tail > 0]
    moments = statistics.moments(varied, shared.whiten)
    shares = (moments.second / moments.first.square()).clamp(1 / len(shared.whiten), 1).tolist()
    typical = math.fsum(shares) / len(varied)
    normal = {
        name: normal_bound(shared.unseen(first, fitted), 2 / (share + typical), quantile)
        for name, first, fitted, share in zip(
            varied, moments.first.tolist(), moments.fitted.tolist(), shares, strict=True
        )
    }
    pooled = math.fsum(normal.values()) / len(varied)
    # Nothing is known of the spread of other classes: the typical one, with the uncertainty of a mean of one embedding.
    unknown = 2 * pooled * math.exp(0.5 * student_quantile(quantile, 2))
    return {
        name: max(normal[name] * summary.tail, 0.1 * pooled) if name in normal else unknown
        for name, summary in classes.items()
    }
