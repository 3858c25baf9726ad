"""What the Gaussian selector remembers of each class, from that class alone: the order of arrival cannot matter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError, IntegrityError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.compact import pack_scaled_rows, unpack_scaled_rows
from samcl_core.selectors.keeping import check_new, json_size, learnt, stored_bytes
from samcl_core.selectors.novelty import held_out_bound, held_out_distance2
from samcl_core.selectors.shrinkage import normal_bound, shrink

__all__ = ["NUM_AXES", "NUM_SKETCHES", "STATE_VERSION", "ClassSummary", "Moments", "Statistics"]

NUM_AXES = 16
"""Principal axes that a class keeps of its covariance."""
NUM_SKETCHES = 4
"""Vectors it keeps in place of all further axes. With axes and mean they take 25 bytes a channel."""
STATE_VERSION = 3

_NUM_TRIES = 64
_LARGEST = 2.0**60
_ROUNDING = 2.0**-40
_SMALLEST = 1e-300


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
        rows: (``NUM_AXES`` + ``NUM_SKETCHES`` + 1, C) int8 of ``pack_scaled_rows``: the principal axes of the class,
            each as long as its standard deviation and the longest first, then vectors whose mean outer product is, in
            expectation, what the axes leave of the covariance.
        lengths: (``NUM_AXES`` + ``NUM_SKETCHES``,) float32 of these rows.
        rest: mean variance of the directions beside the axes.
        fourth: sum of |residual|^4.
        tail: how much further out the class's own held-out images lie than a normal distribution says (ratio of
            squared distances at the novelty quantile, under the class's own covariance); 0 when too few to know.
    """

    num: int
    mean: Tensor
    rows: Tensor
    lengths: Tensor
    rest: float
    fourth: float
    tail: float

    @property
    def nbytes(self) -> int:
        """Bytes of mean, rows, their lengths and the four numbers."""
        return self.mean.nbytes + self.rows.nbytes + self.lengths.nbytes + 4 * 8

    @staticmethod
    def of(embeddings: Tensor, quantile: float, seed: int) -> ClassSummary:
        """Summary of (n, C) embeddings; ``seed`` draws the signs of the sketches.

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
        fourth = float(residuals.square().sum(1).square().sum())
        kept, rest, tail = _spread_and_tail(residuals, fourth, quantile, seed)
        packed, lengths = pack_scaled_rows(kept)
        return ClassSummary(len(rows), mean.float(), packed, lengths, rest, fourth, tail)

    def scatter_parts(self) -> tuple[Tensor, float]:
        """Rows (``NUM_AXES``, C) float64 and a variance. The sum of r r^T over the embeddings is that of a a^T over the
        rows and the variance in every direction: probabilistic PCA (Tipping and Bishop 1999), each axis keeps its own.
        """
        axes = unpack_scaled_rows(self.rows, self.lengths)[:NUM_AXES]
        variances = self.lengths[:NUM_AXES].double().square().clamp_min(_SMALLEST)
        shares = (1 - self.rest / variances).clamp_min(0)
        return axes * ((self.num - 1) * shares).sqrt()[:, None], self.rest * (self.num - 1)


def _spread_and_tail(residuals: Tensor, fourth: float, quantile: float, seed: int) -> tuple[Tensor, float, float]:
    """Axes and sketches (``NUM_AXES`` + ``NUM_SKETCHES``, C) of a class, the rest beside its axes, and its tail.

    A sketch is a sum of further principal axes, each as long as its standard deviation and with a random sign. Its
    squared length under any metric that has the same axes is exactly their trace, whatever the signs (random
    combinations of residuals are off by sqrt(2 / S / degrees of freedom)); other metrics add their off-diagonal part.
    Of some draws the one is kept whose pairs of sketches also tell the second moment best under the class's own metric.
    """
    scatter = residuals.T @ residuals
    dim = len(scatter)
    kept = residuals.new_zeros(NUM_AXES + NUM_SKETCHES, dim)
    own = shrink(scatter, len(residuals), 1, fourth, _TAIL_INTENSITY)
    if own is None:
        return kept, 0.0, 0.0
    variances, axes = _principal(residuals, scatter)
    spread = variances / (own.scale * (len(residuals) - 1) * variances + own.floor)
    kept[: min(NUM_AXES, len(axes))] = axes[:NUM_AXES]
    if len(axes) > NUM_AXES:
        kept[NUM_AXES:] = _sketches(axes[NUM_AXES:], spread[NUM_AXES:], seed)
    first, second = float(spread.sum()), float(spread.square().sum())
    held_out = held_out_distance2(residuals, own)
    expected = normal_bound(own.unseen(first), first**2 / second, quantile)
    tail = max(held_out_bound(held_out, quantile, held_out) / expected, 1.0)
    return kept, float(variances[NUM_AXES:].sum()) / max(dim - NUM_AXES, 1), tail


def _sketches(axes: Tensor, spread: Tensor, seed: int) -> Tensor:
    """(``NUM_SKETCHES``, C) sums of (R, C) axes, whose variances under the class's own metric are ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (_NUM_TRIES, NUM_SKETCHES, len(axes)), generator=generator).double() * 2 - 1
    grams = (signs * spread) @ signs.mT
    best = int((_pair_moment(grams) - float(spread.square().sum())).abs().argmin())
    return signs[best] @ axes


def _principal(residuals: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (R,), largest first, and axes (R, C) as long as their roots, from the smaller of two matrices."""
    num, dim = residuals.shape
    if num < dim:
        values, vectors = torch.linalg.eigh(residuals @ residuals.T)
        axes = vectors.T @ residuals
    else:
        values, vectors = torch.linalg.eigh(scatter)
        axes = values.clamp_min(0).sqrt()[:, None] * vectors.T
    return values.clamp_min(0).flip(0) / (num - 1), axes.flip(0) / (num - 1) ** 0.5


def _pair_moment(grams: Tensor) -> Tensor:
    """Mean squared inner product of two different sketches, which estimates tr(M^2): (..., S, S) to (...)."""
    num = grams.shape[-1]
    own = grams.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return (grams.square().sum((-2, -1)) - own) / (num * (num - 1))


@dataclass(frozen=True)
class Moments:
    """Of some classes, with M the covariance of a class in one metric; (K,) float64 each.

    Attributes:
        first: tr(M), the mean squared distance of an image from the mean of its class.
        second: tr(M^2).
        fitted: the part of ``first`` that lies along the kept axes.
    """

    first: Tensor
    second: Tensor
    fitted: Tensor


@dataclass(frozen=True)
class Statistics:
    """State of the Gaussian selector: a summary a class, and nothing beside them.

    Attributes:
        classes: name to summary.
        natural: names of the classes without a module.
        quantile: the novelty quantile that the tails were measured at.
    """

    quantile: float
    classes: dict[str, ClassSummary] = field(default_factory=dict)
    natural: tuple[str, ...] = ()

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
        """Bytes that class ``name`` takes in the stored state: mean, axes, sketches, numbers and its name."""
        return self.classes[name].nbytes + json_size(name) * (2 if name in self.natural else 1)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the stored state beside those of the classes: headers and punctuation."""
        return stored_bytes(*self.state()) - sum(map(self.class_bytes, self.classes))

    def added(self, name: str, embeddings: Tensor, *, seed: int, is_natural: bool = False) -> Statistics:
        """These statistics and one class more; nothing of the others changes.

        Raises:
            BankError: the class is already there, or the embeddings do not fit.
        """
        check_new(name, embeddings, self.classes, self.dim)
        summary = ClassSummary.of(embeddings, self.quantile, derived_seed(seed, "sketch", name))
        natural = (*self.natural, name) if is_natural else self.natural
        return replace(self, classes={**self.classes, name: summary}, natural=natural)

    def scatter(self, names: Collection[str]) -> Tensor:
        """(C, C) float64, the sum of r r^T over the embeddings of some classes, at least one, r being the residual from
        the class mean: exact along the kept axes, and the same variance in all other directions.

        The order of ``names`` does not change a bit.
        """
        parts = [self.classes[name].scatter_parts() for name in sorted(names)]
        axes = torch.cat([axes for axes, _ in parts])
        total = axes.T @ axes
        total.diagonal().add_(math.fsum(rest for _, rest in parts))
        return total

    def moments(self, names: Sequence[str], whiten: Tensor) -> Moments:
        """Moments of some classes, at least one, in the metric whose (C, C) float64 root ``whiten`` is."""
        classes = [self.classes[name] for name in names]
        rows = unpack_scaled_rows(torch.stack([c.rows for c in classes]), torch.stack([c.lengths for c in classes]))
        whitened = rows @ whiten.T
        grams = whitened @ whitened.mT
        axes, cross, rest = (
            grams[:, :NUM_AXES, :NUM_AXES],
            grams[:, :NUM_AXES, NUM_AXES:],
            grams[:, NUM_AXES:, NUM_AXES:],
        )
        fitted = axes.diagonal(dim1=1, dim2=2).sum(1)
        second = axes.square().sum((1, 2)) + 2 * cross.square().sum(1).mean(1) + _pair_moment(rest)
        return Moments(fitted + rest.diagonal(dim1=1, dim2=2).mean(1), second, fitted)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Names are in the order of arrival, rows of tensors in that of names."""
        values = {
            "kind": self.kind,
            "version": STATE_VERSION,
            "quantile": self.quantile,
            "natural": list(self.natural),
            "classes": list(self.classes),
        }
        if not self.classes:
            return values, {}
        ordered = [self.classes[name] for name in sorted(self.classes)]
        return values, {
            "means": torch.stack([c.mean for c in ordered]),
            "rows": torch.stack([c.rows for c in ordered]),
            "lengths": torch.stack([c.lengths for c in ordered]),
            "numbers": torch.tensor([[c.num, c.rest, c.fourth, c.tail] for c in ordered], dtype=torch.float64),
        }

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
        means, rows, lengths, numbers = (tensors[key] for key in ("means", "rows", "lengths", "numbers"))
        num, dim, kept = len(names), means.shape[-1], NUM_AXES + NUM_SKETCHES
        _check_shapes(
            (means, (num, dim), torch.float32),
            (rows, (num, kept + 1, dim), torch.int8),
            (lengths, (num, kept), torch.float32),
            (numbers, (num, 4), torch.float64),
        )
        found = {
            name: ClassSummary(int(count), means[row], rows[row], lengths[row], *others)
            for row, (name, (count, *others)) in enumerate(zip(sorted(names), numbers.tolist(), strict=True))
        }
        return Statistics(quantile, {name: found[name] for name in names}, natural)


def _check_shapes(*expected: tuple[Tensor, tuple[int, ...], torch.dtype]) -> None:
    for tensor, shape, dtype in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"a tensor is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}")
