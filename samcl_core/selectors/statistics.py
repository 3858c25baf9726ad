"""What the Gaussian selector remembers of each class: sums that do not depend on the order in which domains arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError, IntegrityError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.compact import FixedPoint, pack_rows, unpack_rows
from samcl_core.selectors.keeping import check_new, json_size, learnt, stored_bytes
from samcl_core.selectors.novelty import held_out_bound, held_out_distance2
from samcl_core.selectors.shrinkage import normal_bound, shrink

__all__ = ["NUM_SKETCHES", "STATE_VERSION", "ClassSummary", "Statistics", "pair_moment"]

NUM_SKETCHES = 6
"""Vectors a class keeps in place of its covariance. With the mean they take 11 bytes a channel."""
STATE_VERSION = 2

_NUM_TRIES = 64
_LARGEST = 2.0**60
_ROUNDING = 2.0**-40


_TAIL_INTENSITY = 0.5
"""Least shrinkage of the metric that tails are measured in. In the class's bare covariance an image left out is far
away in every direction in which a hundred images happen not to vary: squared thresholds came out 1.5 to 4 times too
wide. With so few images they stay generous under this metric, too."""


@dataclass(frozen=True)
class ClassSummary:
    """One class, from its own embeddings alone.

    Attributes:
        num: how many embeddings.
        mean: (C,) float32.
        sketch: (``NUM_SKETCHES`` + 1, C) int8 of ``pack_rows``: vectors whose mean outer product is, in expectation,
            the covariance of the class.
        fourth: sum of |residual|^4.
        tail: how much further out the class's own held-out images lie than a normal distribution says (ratio of
            squared distances at the novelty quantile, under the class's own covariance); 0 when too few to know.
    """

    num: int
    mean: Tensor
    sketch: Tensor
    fourth: float
    tail: float

    @property
    def nbytes(self) -> int:
        """Bytes of mean, sketch and the three numbers."""
        return self.mean.nbytes + self.sketch.nbytes + 3 * 8

    @staticmethod
    def of(embeddings: Tensor, quantile: float, seed: int) -> tuple[ClassSummary, FixedPoint]:
        """Summary and scatter of (n, C) embeddings.

        Raises:
            BankError: a value is beyond 2^60.
        """
        rows = embeddings.detach().double().cpu()
        largest = float(rows.abs().max())
        if largest > _LARGEST:
            raise BankError(f"embeddings reach {largest:.3g}, expected values up to 2^60")
        mean = rows.mean(0)
        residuals = rows - mean
        if float(residuals.abs().max()) <= _ROUNDING * max(largest, _ROUNDING):
            residuals = torch.zeros_like(residuals)
        scatter = residuals.T @ residuals
        fourth = float(residuals.square().sum(1).square().sum())
        sketch, tail = _sketch_and_tail(residuals, scatter, fourth, quantile, seed)
        return ClassSummary(len(rows), mean.float(), pack_rows(sketch), fourth, tail), FixedPoint.of(scatter)


def _sketch_and_tail(
    residuals: Tensor, scatter: Tensor, fourth: float, quantile: float, seed: int
) -> tuple[Tensor, float]:
    """Sketch vectors (S, C) of a class, and its tail.

    A sketch is a sum of the principal axes of the class, each as long as its standard deviation and with a random sign.
    Its squared length under any metric that has the same axes is exactly the trace, whatever the signs (random
    combinations of residuals are off by sqrt(2 / S / degrees of freedom)); other metrics add their off-diagonal part.
    Of some draws the one is kept whose pairs of sketches also tell the second moment best under the class's own metric.
    """
    own = shrink(scatter, len(residuals), 1, fourth, _TAIL_INTENSITY)
    if own is None:
        return residuals.new_zeros(NUM_SKETCHES, residuals.shape[1]), 0.0
    variances, axes = _principal(residuals, scatter)
    spread = variances / (
        (1 - own.intensity) * variances + own.intensity * float(scatter.trace()) / own.dof / len(scatter)
    )
    first, second = float(spread.sum()), float(spread.square().sum())
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (_NUM_TRIES, NUM_SKETCHES, len(variances)), generator=generator).double() * 2 - 1
    grams = (signs * spread) @ signs.mT
    best = int((pair_moment(grams) - second).abs().argmin())
    held_out = held_out_distance2(residuals, own)
    expected = normal_bound(own.unseen(first), first**2 / second, quantile)
    return signs[best] @ axes, max(held_out_bound(held_out, quantile, held_out) / expected, 1.0)


def _principal(residuals: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (R,) and axes (R, C) with the length of the standard deviation, from the smaller of two matrices."""
    num, dim = residuals.shape
    if num < dim:
        values, vectors = torch.linalg.eigh(residuals @ residuals.T)
        axes = vectors.T @ residuals
    else:
        values, vectors = torch.linalg.eigh(scatter)
        axes = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return values.clamp_min(0) / (num - 1), axes / (num - 1) ** 0.5


def pair_moment(grams: Tensor) -> Tensor:
    """Mean squared inner product of two different sketches, which estimates tr(M^2): (..., S, S) to (...)."""
    num = grams.shape[-1]
    own = grams.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return (grams.square().sum((-2, -1)) - own) / (num * (num - 1))


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
        return learnt(self.classes, self.natural)

    def class_bytes(self, name: str) -> int:
        """Bytes that class ``name`` takes in the stored state: mean, sketch, numbers and its name."""
        return self.classes[name].nbytes + json_size(name) * (2 if name in self.natural else 1)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the stored state beside those of the classes: nearly all of them are the one scatter matrix."""
        return stored_bytes(*self.state()) - sum(map(self.class_bytes, self.classes))

    def added(self, name: str, embeddings: Tensor, *, seed: int, is_natural: bool = False) -> Statistics:
        """These statistics and one class more; nothing of the others changes.

        Raises:
            BankError: the class is already there, or the embeddings do not fit.
        """
        check_new(name, embeddings, self.classes, self.dim)
        summary, scatter = ClassSummary.of(embeddings, self.quantile, derived_seed(seed, "sketch", name))
        natural = (*self.natural, name) if is_natural else self.natural
        total = scatter if self.scatter is None else self.scatter + scatter
        return replace(self, classes={**self.classes, name: summary}, natural=natural, scatter=total)

    def sketches(self, names: list[str]) -> Tensor:
        """(K, S, C) float64 sketch vectors of some classes, at least one."""
        return unpack_rows(torch.stack([self.classes[name].sketch for name in names]))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Names are in the order of arrival, rows of tensors in that of names."""
        values = {
            "kind": self.kind,
            "version": STATE_VERSION,
            "quantile": self.quantile,
            "natural": list(self.natural),
            "classes": list(self.classes),
            "levels": [] if self.scatter is None else sorted(self.scatter.levels),
        }
        if self.scatter is None:
            return values, {}
        ordered = [self.classes[name] for name in sorted(self.classes)]
        tensors = {
            "means": torch.stack([c.mean for c in ordered]),
            "sketches": torch.stack([c.sketch for c in ordered]),
            "numbers": torch.tensor([[c.num, c.fourth, c.tail] for c in ordered], dtype=torch.float64),
        }
        return values, tensors | {f"scatter.{k}": self.scatter.levels[k] for k in sorted(self.scatter.levels)}

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
        """The statistics that ``state`` came from.

        Raises:
            IntegrityError: they were written in another version.
            ValueError: tensors do not fit together.
        """
        if values.get("version") != STATE_VERSION:
            raise IntegrityError(
                f"the gaussian selector state has version {values.get('version')!r}, expected {STATE_VERSION}",
                hint="dvc repro builds all banks again, starting at banks/base",
            )
        names, quantile, natural = values["classes"], float(values["quantile"]), tuple(values["natural"])
        if not names:
            return Statistics(quantile)
        means, sketches, numbers = tensors["means"], tensors["sketches"], tensors["numbers"]
        dim = means.shape[-1]
        levels = {int(level): tensors[f"scatter.{level}"] for level in values["levels"]}
        _check_shapes(
            (means, (len(names), dim), torch.float32),
            (sketches, (len(names), NUM_SKETCHES + 1, dim), torch.int8),
            (numbers, (len(names), 3), torch.float64),
            *((values, (dim * (dim + 1) // 2,), torch.int64) for values in levels.values()),
        )
        found = {
            name: ClassSummary(int(num), means[row], sketches[row], fourth, tail)
            for row, (name, (num, fourth, tail)) in enumerate(zip(sorted(names), numbers.tolist(), strict=True))
        }
        return Statistics(quantile, {name: found[name] for name in names}, natural, FixedPoint(dim, levels))


def _check_shapes(*expected: tuple[Tensor, tuple[int, ...], torch.dtype]) -> None:
    for tensor, shape, dtype in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"a tensor is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}")
