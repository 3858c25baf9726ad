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
from samcl_core.selectors.shrinkage import Shrunk, normal_bound, shrink, student_quantile
from samcl_core.selectors.statistics import Statistics, pair_moment

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
    shared = shrink(statistics.scatter.matrix(), num, len(classes), fourth)
    order = [*statistics.domains, *statistics.natural]
    # Without any spread the plain Euclidean metric is as good as another, and every threshold stays open.
    whiten = torch.eye(dim, dtype=torch.float64) if shared is None else shared.whiten
    bounds = dict.fromkeys(order, _OPEN) if shared is None else _bounds(statistics, shared)
    means = torch.stack([classes[name].mean for name in order])
    limits = torch.tensor([bounds[name] for name in order], dtype=torch.float64).sqrt()
    return GaussianSelector(
        NoveltyGate(means, whiten.float(), limits), statistics.domains, statistics.natural, has_gate=has_gate
    )


def _bounds(statistics: Statistics, shared: Shrunk) -> dict[str, float]:
    """Squared distance that each class's next image stays within: normal theory in this metric, times the class's tail.

    With M the covariance of a class in this metric, the mean tr(M) comes from the class's own sketches. Their pairs are
    too few for the degrees of freedom tr(M)^2 / tr(M^2), so these go half the way to those of all classes together.
    """
    quantile, classes = statistics.quantile, statistics.classes
    varied = [name for name in sorted(classes) if classes[name].tail > 0]
    whitened = statistics.sketches(varied) @ shared.whiten.T
    grams = whitened @ whitened.mT
    firsts = grams.diagonal(dim1=1, dim2=2).mean(1)
    shares = (pair_moment(grams) / firsts.square()).clamp(1 / whitened.shape[2], 1)
    typical = math.fsum(shares.tolist()) / len(varied)
    normal = {
        name: normal_bound(shared.unseen(first), 2 / (share + typical), quantile)
        for name, first, share in zip(varied, firsts.tolist(), shares.tolist(), strict=True)
    }
    pooled = math.fsum(normal.values()) / len(varied)
    # Nothing is known of the spread of other classes: the typical one, with the uncertainty of a mean of one embedding.
    unknown = 2 * pooled * math.exp(0.5 * student_quantile(quantile, 2))
    return {
        name: max(normal[name] * summary.tail, 0.1 * pooled) if name in normal else unknown
        for name, summary in classes.items()
    }
