"""A selector in closed form: class means and one shared shrunk covariance. No stored embedding, no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.base import Choice
from samcl_core.selectors.choosing import check_embeddings, choice_of
from samcl_core.selectors.novelty import NoveltyGate
from samcl_core.selectors.shrinkage import shrink, student_quantile
from samcl_core.selectors.statistics import ClassSummary, Statistics, normal_bound

__all__ = ["GaussianSelector", "fit_gaussian"]

_OPEN = math.inf


class GaussianSelector:
    """Linear discriminant: the class with the nearest mean under one metric, all classes equally likely before.

    Thresholds of the classes are always there; whether an image beyond all of them is plain is ``has_gate``.
    """

    kind = "gaussian"

    def __init__(
        self, distances: NoveltyGate, domains: Sequence[str], natural: Sequence[str], *, has_gate: bool = True
    ) -> None:
        """``distances`` holds the metric, the means and the thresholds, learnt domains first, then natural classes."""
        self.domains, self.natural, self.has_gate = tuple(domains), tuple(natural), has_gate
        self._distances = distances

    @torch.no_grad()
    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) float embeddings to a choice each.

        Raises:
            BankError: the embeddings have another width than those it was fitted on.
        """
        check_embeddings(embeddings, self._distances.means.shape[1])
        distances = self._distances.distances(embeddings)
        # Distances of hundreds of dimensions differ by hundreds; relative to the best, exp() stays finite.
        log_probabilities = (-0.5 * distances.square()).log_softmax(1)
        novelty = (distances / self._distances.thresholds).amin(1).float()
        if not self.has_gate:
            novelty = torch.zeros_like(novelty)
        return choice_of(log_probabilities, len(self.domains), novelty)

    def to(self, device: Any) -> GaussianSelector:
        """Move the tensors; returns itself."""
        self._distances.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Class names, and metric, means and thresholds."""
        values = {
            "kind": self.kind,
            "domains": list(self.domains),
            "natural": list(self.natural),
            "has_gate": self.has_gate,
            "thresholds": self._distances.limits((*self.domains, *self.natural)),
        }
        return values, self._distances.tensors()

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianSelector:
        """The selector that ``state`` came from.

        Raises:
            ValueError: there is not one mean a class.
        """
        names = (*values["domains"], *values["natural"])
        gate = NoveltyGate.stored(tensors, values["thresholds"], names)
        return GaussianSelector(gate, values["domains"], values["natural"], has_gate=bool(values["has_gate"]))


def fit_gaussian(statistics: Statistics, *, has_gate: bool) -> GaussianSelector:
    """The selector of some statistics. Metric, means and thresholds do not depend on the order of arrival.

    Raises:
        BankError: there is no class.
    """
    dim, classes = statistics.dim, statistics.classes
    if dim is None or statistics.scatter is None:
        raise BankError("a gaussian selector needs at least one class, found none")
    fourth = math.fsum(summary.fourth for summary in classes.values())
    num = sum(summary.num for summary in classes.values())
    shared = shrink(statistics.scatter.matrix(dim), num, len(classes), fourth)
    order = [*statistics.domains, *statistics.natural]
    # Without any spread the plain Euclidean metric is as good as another, and every threshold stays open.
    whiten = torch.eye(dim, dtype=torch.float64) if shared is None else shared.whiten
    thresholds = dict.fromkeys(order, _OPEN)
    if shared is not None:
        pooled = _pooled_bound(classes, whiten, statistics.quantile)
        thresholds = {name: math.sqrt(_bound(classes[name], whiten, statistics.quantile, pooled)) for name in order}
    means = torch.stack([classes[name].mean for name in order])
    limits = torch.tensor([thresholds[name] for name in order], dtype=torch.float64)
    return GaussianSelector(
        NoveltyGate(means.float(), whiten.float(), limits), statistics.domains, statistics.natural, has_gate=has_gate
    )


def _bound(summary: ClassSummary, whiten: Tensor, quantile: float, pooled: float) -> float:
    """Squared distance that the class's next image stays within: normal theory in this metric, times its tail."""
    if summary.num < 2 or summary.tail == 0:
        # Nothing is known of the class's own spread: the others' with the uncertainty of a mean of one embedding.
        return 2 * pooled * math.exp(0.5 * student_quantile(quantile, 2))
    own = normal_bound(summary.sketch.double() @ whiten.T, quantile) * summary.tail
    return max(own, 0.1 * pooled)


def _pooled_bound(classes: Mapping[str, ClassSummary], whiten: Tensor, quantile: float) -> float:
    sketches = [classes[name].sketch.double() for name in sorted(classes) if classes[name].num > 1]
    return normal_bound(torch.cat(sketches) @ whiten.T, quantile)
