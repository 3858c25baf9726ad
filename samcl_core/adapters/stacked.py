"""Tensors of several modules side by side in one matrix, so that one operation picks rows of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

__all__ = ["Columns", "StackedTensors"]

_ALIGNED = 8
"""Tensors begin at multiples of this many numbers: fast products want aligned weights."""


class Columns:
    """Which columns of a row each tensor of a module takes.

    Attributes:
        starts: name to first column.
        width: columns of a row.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """``shapes`` by name, in the order of the columns."""
        self.starts: dict[str, int] = {}
        self.width = 0
        self._strides: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            self.starts[name] = self.width
            self.width += -(-math.prod(shape) // _ALIGNED) * _ALIGNED
            self._strides[name] = shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """(M, width) to the tensors by name, (M, ...) each; nothing is copied."""
        rows, step, offset = len(matrix), matrix.stride(0), matrix.storage_offset()
        return {
            name: matrix.as_strided((rows, *shape), (step, *strides), offset + self.starts[name])
            for name, (shape, strides) in self._strides.items()
        }


class StackedTensors(Mapping[str, Tensor]):
    """Stacked tensors of M modules, by name (M, ...), as views of one matrix."""

    def __init__(self, matrix: Tensor, columns: Columns) -> None:
        """``matrix`` is (M, ``columns.width``) float, its rows contiguous."""
        self._matrix, self._columns = matrix, columns
        self._views = columns.views(matrix)

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def take(self, index: Tensor) -> StackedTensors:
        """The rows ``index`` (B,) int64 of all tensors, copied at once."""
        return StackedTensors(self._matrix.index_select(0, index), self._columns)

    def row(self, position: int) -> dict[str, Tensor]:
        """One module's tensors, without the leading dimension."""
        return {name: tensor[position] for name, tensor in self._views.items()}
