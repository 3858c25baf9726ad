"""Sums that do not depend on their order, and rows of numbers in one byte each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samcl_core.errors import BankError

__all__ = ["FixedPoint", "pack_rows", "unpack_rows"]

_LOWEST, _STEP, _HEADROOM = -6, 24, 12
"""Level 0 holds matrices whose largest entry is in [2^-6, 2^18), the levels beside it 2^24 times more or less. Its
quantum is 2^-32, so that 2^12 matrices at the top of it stay below 2^62."""


@dataclass(frozen=True)
class FixedPoint:
    """A sum of symmetric (C, C) matrices: the upper triangle as int64 multiples of a power of two.

    Integer sums do not depend on their order, so that the same domains give the same bytes however they arrive. Which
    quantum a matrix is rounded to depends on its own largest entry alone: it is 2^-26 to 2^-50 of that entry (2^-32 to
    2^-41 where the largest entry is 1 to 500). Matrices of one level share a vector of 8 bytes an entry.

    Attributes:
        size: C.
        levels: level to (C (C + 1) / 2,) int64; usually one, none for zero.
    """

    size: int
    levels: Mapping[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(matrix: Tensor) -> FixedPoint:
        """A (C, C) float64 matrix that is finite and symmetric, rounded to its level."""
        size = matrix.shape[0]
        values = matrix[tuple(torch.triu_indices(size, size))]
        largest = float(values.abs().max()) if size else 0.0
        if largest == 0:
            return FixedPoint(size)
        level = (math.frexp(largest)[1] - 1 - _LOWEST) // _STEP
        return FixedPoint(size, {level: (values * math.ldexp(1.0, -_quantum(level))).round().to(torch.int64)})

    def __add__(self, other: FixedPoint) -> FixedPoint:
        """The exact sum.

        Raises:
            BankError: it could leave the range of int64, after thousands of classes.
        """
        levels = dict(self.levels)
        for level, values in other.levels.items():
            levels[level] = levels[level] + values if level in levels else values
            if int(levels[level].abs().max()) >= 1 << 62:
                raise BankError(f"the statistics hold more classes than they can add up exactly, 2^{_HEADROOM} or more")
        return FixedPoint(self.size, dict(sorted(levels.items())))

    def matrix(self) -> Tensor:
        """The (C, C) float64 matrix."""
        rows, columns = torch.triu_indices(self.size, self.size)
        result = torch.zeros(self.size, self.size, dtype=torch.float64)
        for level in sorted(self.levels):
            result[rows, columns] += self.levels[level].double() * math.ldexp(1.0, _quantum(level))
        result[columns, rows] = result[rows, columns]
        return result


def _quantum(level: int) -> int:
    return _LOWEST + (level + 1) * _STEP + _HEADROOM - 62


def pack_rows(rows: Tensor) -> Tensor:
    """(S, C) floats below 2^126 to (S + 1, C) int8: a common binary exponent a column, then S mantissas.

    A value is off by at most 1/128 of the largest in its column, whatever the magnitude of the column.
    """
    exponents = torch.frexp(rows.double().abs().amax(0))[1].clamp(-126, 126)
    mantissas = torch.ldexp(rows.double(), 7 - exponents).round().clamp(-127, 127)
    return torch.cat([exponents[None], mantissas]).to(torch.int8)


def unpack_rows(packed: Tensor) -> Tensor:
    """(..., S + 1, C) int8 of ``pack_rows`` to (..., S, C) float64."""
    return torch.ldexp(packed[..., 1:, :].double(), packed[..., :1, :].int() - 7)
