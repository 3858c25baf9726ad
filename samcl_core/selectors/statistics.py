"""What the Gaussian selector remembers of each class: sums that do not depend on the order in which domains arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.choosing import check_classes, derived_seed
from samcl_core.selectors.novelty import held_out_bound, held_out_distance2
from samcl_core.selectors.shrinkage import chi2_quantile, shrink

__all__ = ["NUM_SKETCHES", "ClassSummary", "FixedPoint", "Statistics", "normal_bound"]

NUM_SKETCHES = 32
"""Random combinations of residuals that a class keeps: they tell its spread under any later metric to about 10 %."""

_HIGH, _LOW = 2.0**20, 2.0**60


@dataclass(frozen=True)
class FixedPoint:
    """The upper triangle of a symmetric matrix as two int64 vectors, ``high / 2^20 + low / 2^60``.

    Integer sums do not depend on their order, so that the same domains give the same bytes however they arrive.
    """

    high: Tensor
    low: Tensor

    @staticmethod
    def of(matrix: Tensor) -> FixedPoint:
        """A (C, C) float64 matrix, rounded to multiples of 2^-60.

        Raises:
            BankError: a value is beyond 2^41, where sums could overflow.
        """
        size = matrix.shape[0]
        values = matrix[tuple(torch.triu_indices(size, size))]
        if size and float(values.abs().max()) > 2.0**41:
            raise BankError(
                f"embeddings spread over {float(values.abs().max()):.3g} squared units, expected below 2^41"
            )
        high = (values * _HIGH).round()
        low = ((values - high / _HIGH) * _LOW).round()
        return FixedPoint(high.to(torch.int64), low.to(torch.int64))

    def __add__(self, other: FixedPoint) -> FixedPoint:
        return FixedPoint(self.high + other.high, self.low + other.low)

    def matrix(self, size: int) -> Tensor:
        """The (C, C) float64 matrix."""
        rows, columns = torch.triu_indices(size, size)
        result = torch.zeros(size, size, dtype=torch.float64)
        result[rows, columns] = self.high.double() / _HIGH + self.low.double() / _LOW
        result[columns, rows] = result[rows, columns]
        return result


@dataclass(frozen=True)
class ClassSummary:
    """One class, from its own embeddings alone.

    Attributes:
        num: how many embeddings.
        mean: (C,) float64.
        sketch: (S, C) float32, random sign combinations of the residuals, each with the class's own covariance.
        fourth: sum of |residual|^4.
        tail: how much further out the class's own held-out images lie than a normal distribution says (ratio of
            squared distances at the novelty quantile, under the class's own covariance); 0 when too few to know.
    """

    num: int
    mean: Tensor
    sketch: Tensor
    fourth: float
    tail: float

    @staticmethod
    def of(embeddings: Tensor, quantile: float, seed: int) -> tuple[ClassSummary, FixedPoint]:
        """Summary and scatter of (n, C) embeddings."""
        rows = embeddings.double().cpu()
        mean = rows.mean(0)
        residuals = rows - mean
        scatter = residuals.T @ residuals
        fourth = float(residuals.square().sum(1).square().sum())
        signs = torch.randint(0, 2, (NUM_SKETCHES, len(rows)), generator=torch.Generator().manual_seed(seed))
        sketch = (signs.double() * 2 - 1) @ residuals / max(len(rows) - 1, 1) ** 0.5
        tail = _tail(residuals, scatter, fourth, sketch, quantile)
        return ClassSummary(len(rows), mean, sketch.float(), fourth, tail), FixedPoint.of(scatter)


def _tail(residuals: Tensor, scatter: Tensor, fourth: float, sketch: Tensor, quantile: float) -> float:
    own = shrink(scatter, len(residuals), 1, fourth)
    if own is None:
        return 0.0
    held_out = held_out_distance2(residuals, own)
    expected = normal_bound(sketch @ own.whiten.T, quantile)
    return max(held_out_bound(held_out, quantile, held_out) / expected, 1.0)


def normal_bound(whitened: Tensor, quantile: float) -> float:
    """Quantile of the squared length of a normal vector of which (S, C) samples are given, by its first two moments.

    The squared length is a weighted sum of chi-squared variables; Satterthwaite's scaled chi-squared has the same mean
    tr(M) and variance 2 tr(M^2). Both traces are estimated without bias: the second from pairs of different samples.
    """
    gram = whitened @ whitened.T
    num = len(whitened)
    first = float(gram.diagonal().mean())
    second = float(gram.square().sum() - gram.diagonal().square().sum()) / (num * (num - 1))
    second = min(max(second, first**2 / whitened.shape[1]), first**2)
    return second / first * chi2_quantile(quantile, first**2 / second) if first > 0 else 0.0


@dataclass(frozen=True)
class Statistics:
    """State of the Gaussian selector: a summary a class, and one scatter matrix for all of them.

    Attributes:
        classes: name to summary.
        natural: names of the classes without a module.
        scatter: sum over classes of the scatter around the class mean; ``None`` without classes.
        quantile: the novelty quantile that the tails were measured at.
    """

    quantile: float
    classes: dict[str, ClassSummary] = field(default_factory=dict)
    natural: tuple[str, ...] = ()
    scatter: FixedPoint | None = None

    kind = "gaussian"

    @property
    def dim(self) -> int | None:
        """Width of the embeddings; ``None`` before the first class."""
        return next((len(summary.mean) for summary in self.classes.values()), None)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the classes with a module, in the order of arrival."""
        return tuple(name for name in self.classes if name not in self.natural)

    def added(self, name: str, embeddings: Tensor, *, seed: int, is_natural: bool = False) -> Statistics:
        """These statistics and one class more; nothing of the others changes.

        Raises:
            BankError: the class is already there, or the embeddings do not fit.
        """
        if name in self.classes:
            raise BankError(f"the selector already knows {name!r}, expected a new domain")
        check_classes({name: embeddings})
        if self.dim not in (None, embeddings.shape[1]):
            raise BankError(f"embeddings of {name} have width {embeddings.shape[1]}, expected {self.dim}")
        summary, scatter = ClassSummary.of(embeddings, self.quantile, derived_seed(seed, "sketch", name))
        natural = (*self.natural, name) if is_natural else self.natural
        total = scatter if self.scatter is None else self.scatter + scatter
        return replace(self, classes={**self.classes, name: summary}, natural=natural, scatter=total)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Classes are a list: JSON objects are stored with sorted keys."""
        values = {
            "kind": self.kind,
            "quantile": self.quantile,
            "natural": list(self.natural),
            "classes": [
                {"name": name, "num": c.num, "fourth": c.fourth, "tail": c.tail} for name, c in self.classes.items()
            ],
        }
        tensors = {f"mean.{name}": summary.mean for name, summary in self.classes.items()}
        tensors |= {f"sketch.{name}": summary.sketch for name, summary in self.classes.items()}
        if self.scatter is not None:
            tensors |= {"scatter.high": self.scatter.high, "scatter.low": self.scatter.low}
        return values, tensors

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
        """The statistics that ``state`` came from."""
        classes: dict[str, ClassSummary] = {}
        for c in values["classes"]:
            mean, sketch = tensors[f"mean.{c['name']}"], tensors[f"sketch.{c['name']}"]
            classes[c["name"]] = ClassSummary(int(c["num"]), mean, sketch, float(c["fourth"]), float(c["tail"]))
        scatter = FixedPoint(tensors["scatter.high"], tensors["scatter.low"]) if classes else None
        return Statistics(float(values["quantile"]), classes, tuple(values["natural"]), scatter)
