"""Tensors of several modules side by side in one matrix, so that one operation picks rows of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["Columns", "StackedTensors"]

_ALIGNED = 8
"""Tensors begin at multiples of this many numbers: fast products want aligned weights."""


class Columns:
    """Which columns of a row each tensor of a module takes.

    Attributes:
        shapes: name to shape of one module's tensor.
        starts: name to first column.
        width: columns of a row.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """``shapes`` by name, in the order of the columns."""
        self.shapes = dict(shapes)
        self.starts: dict[str, int] = {}
        self.width = 0
        self._strides: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            self.starts[name] = self.width
            self.width += -(-math.prod(shape) // _ALIGNED) * _ALIGNED
            self._strides[name] = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

    def view(self, matrix: Tensor, name: str) -> Tensor:
        """(M, ...) tensor ``name`` in a (M, width) matrix; nothing is copied."""
        strides = (matrix.stride(0), *self._strides[name])
        offset = matrix.storage_offset() + self.starts[name]
        return matrix.as_strided((len(matrix), *self.shapes[name]), strides, offset)

    def view_of_row(self, row: Tensor, name: str) -> Tensor:
        """Tensor ``name`` in a row of (width,); nothing is copied."""
        return row.as_strided(self.shapes[name], self._strides[name], row.storage_offset() + self.starts[name])


class StackedTensors(Mapping[str, Tensor]):
    """Stacked tensors of M modules, by name (M, ...), as views of one matrix.

    Attributes:
        columns: where each tensor is.
    """

    def __init__(self, matrix: Tensor, columns: Columns) -> None:
        """``matrix`` is (M, ``columns.width``) float, its rows contiguous."""
        self.columns = columns
        self._matrix = matrix
        self._views: dict[str, Tensor] = {}
        self._everything: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._views:
            self._views[name] = self.columns.view(self._matrix, name)
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.shapes)

    def __len__(self) -> int:
        return len(self.columns.shapes)

    def everything(self) -> Tensor:
        """(M,) int64, the index of all rows in order."""
        if self._everything is None:
            self._everything = torch.arange(len(self._matrix), device=self._matrix.device)
        return self._everything

    def take(self, index: Tensor) -> StackedTensors:
        """The rows ``index`` (B,) int64 of all tensors, copied at once; those of ``everything`` are there already."""
        if index is self._everything:
            return self
        return StackedTensors(self._matrix.index_select(0, index), self.columns)

    def row(self, position: int) -> dict[str, Tensor]:
        """One module's tensors, without the leading dimension."""
        own = self._matrix[position]
        return {name: self.columns.view_of_row(own, name) for name in self}
