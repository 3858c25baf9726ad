"""Modules on the device of the backbone, as they are stored: loaded when first used, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samcl_core.adapters.base import Adapter
from samcl_core.adapters.stacked import Columns, StackedTensors
from samcl_core.bank.module import Module
from samcl_core.bank.packing import SCALE, unpack
from samcl_core.bank.stack import check_modules

__all__ = ["ModuleStack"]

_WORD_BYTES = 8
_PLAIN = 0


class ModuleStack:
    """Row 0 changes nothing (plain SAM), row k + 1 is module k. A row is loaded when it is first asked for.

    A row holds all tensors of a module one after the other in the number formats of its file, so that picking the rows
    of a batch is one operation whatever the number of modules, and they take no more memory than their files: 123 MB
    for 1,000 AugModules of SAM ViT-B in half precision. Where modules of one bank differ in their formats, rows are
    float32. Threads may share a stack.

    Attributes:
        num_resident: modules that are loaded now.
        capacity: modules that there is room for.
        row_bytes: memory of one module.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        adapter: Adapter,
        device: torch.device | str = "cpu",
        *,
        max_gb: float = 1.0,
    ) -> None:
        """Reserve the room; nothing is loaded yet.

        Args:
            modules: M, 1 or more.
            adapter: the one that they were trained with.
            device: where the rows live.
            max_gb: limit of all rows in 1e9 bytes. Beyond it the least recently used row makes room; a batch with more
                distinct modules than that gets the room it needs.

        Raises:
            BankError: a module is of another kind, or has other settings or shapes than ``adapter``.
        """
        check_modules(modules, adapter)
        self._modules = tuple(modules)
        self._device = torch.device(device)
        formats = {name: tensor.dtype for name, tensor in modules[0].tensors.items()}
        self._is_packed = all(_formats(module) == formats for module in modules)
        shapes = {name: tuple(shape) for name, shape in modules[0].shapes.items()}
        stored = formats if self._is_packed else dict.fromkeys(shapes, torch.float32)
        self._layout = _Layout(shapes, stored, self._device)
        self.row_bytes = self._layout.words * _WORD_BYTES
        self.capacity = max(1, min(len(modules), int(max_gb * 1e9) // self.row_bytes))
        self._reserve(self.capacity)
        self._lock = threading.Lock()

    @property
    def num_resident(self) -> int:
        """Modules that are loaded now."""
        return len(self._slots)

    def tensors(self, rows: Sequence[int]) -> StackedTensors:
        """float32 tensors of some rows, in this order: (len(rows), ...) each.

        Args:
            rows: 0 is plain SAM, k + 1 module k; at least one.
        """
        with self._lock:
            slots = torch.tensor(self._load(rows), device=self._device)
            words = self._rows.index_select(0, slots)
        return StackedTensors(self._layout.decode(words), self._layout.columns)

    def _reserve(self, capacity: int) -> None:
        self.capacity = capacity
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._rows = torch.empty(capacity + 1, self._layout.words, dtype=torch.int64, device=self._device)
        self._rows[_PLAIN] = 0

    def _load(self, rows: Sequence[int]) -> list[int]:
        """Where each of ``rows`` is, after what was missing was loaded."""
        wanted = [row for row in dict.fromkeys(rows) if row != _PLAIN]
        if len(wanted) > self.capacity:
            self._reserve(len(wanted))
        for row in wanted:
            if row in self._slots:
                self._slots.move_to_end(row)
        for row in wanted:
            if row not in self._slots:
                is_full = len(self._slots) == self.capacity
                slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots) + 1
                module = self._modules[row - 1]
                self._rows[slot] = self._layout.encode(module.tensors if self._is_packed else unpack(module.tensors))
                self._slots[row] = slot
        return [self._slots[row] if row != _PLAIN else _PLAIN for row in rows]


class _Layout:
    """The place of every stored tensor in a row of 64-bit words, and the way back to float32.

    Tensors of one number format stand together: a format is decoded at once, beside the scales of 8-bit tensors.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, torch.dtype], device: torch.device
    ) -> None:
        stored = {name: shapes[name] if name in shapes else shapes[name.removesuffix(SCALE)][:1] for name in formats}
        kinds = sorted({(dtype.itemsize, str(dtype)): dtype for dtype in formats.values()}.items(), reverse=True)
        self._parts: list[tuple[torch.dtype, slice, Columns, list[str]]] = []
        self.words = 0
        for _, dtype in kinds:
            for is_scale in (False, True):
                names = [n for n in formats if formats[n] == dtype and n.endswith(SCALE) == is_scale]
                if names:
                    columns = Columns({name: stored[name] for name in names})
                    words = columns.width * dtype.itemsize // _WORD_BYTES
                    self._parts.append((dtype, slice(self.words, self.words + words), columns, names))
                    self.words += words
        self.columns = Columns({n: shapes[n] for *_, names in self._parts for n in names if n in shapes})
        self._scales = self._places_of_scales(shapes).to(device)

    def encode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(words,) int64, a module's stored tensors as one row on the CPU."""
        row = torch.zeros(self.words, dtype=torch.int64)
        for dtype, words, columns, names in self._parts:
            part = row[words].view(dtype)
            for name in names:
                part[columns.starts[name] :][: tensors[name].numel()] = tensors[name].reshape(-1)
        return row

    def decode(self, rows: Tensor) -> Tensor:
        """(M, words) int64 to (M, columns.width) float32."""
        if len(self._parts) == 1:
            dtype, words, *_ = self._parts[0]
            return rows.view(dtype).float()
        values, scales, whole = [], [], torch.empty(0)
        for dtype, words, _, names in self._parts:
            part = rows[:, words].contiguous().view(dtype).float()
            if names[0].endswith(SCALE):
                scales.append(part)
            elif dtype == torch.int8:
                whole = part
            else:
                values.append(part)
        if scales:
            values.append(whole.mul_(torch.cat(scales, 1).index_select(1, self._scales)))
        return torch.cat(values, 1)

    def _places_of_scales(self, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
        """For each column of the 8-bit part the column of its scale, among those of all scales."""
        starts: dict[str, int] = {}
        begin = 0
        for _, _, columns, names in self._parts:
            if names[0].endswith(SCALE):
                starts |= {name.removesuffix(SCALE): begin + columns.starts[name] for name in names}
                begin += columns.width
        places = [torch.zeros(0, dtype=torch.int64)]
        for dtype, _, columns, names in self._parts:
            if dtype == torch.int8:
                own = torch.zeros(columns.width, dtype=torch.int64)
                for name in names:
                    size = int(torch.Size(shapes[name]).numel())
                    rows = torch.arange(shapes[name][0]).repeat_interleave(size // max(1, shapes[name][0]))
                    own[columns.starts[name] :][:size] = starts[name] + rows
                places.append(own)
        return torch.cat(places)


def _formats(module: Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in module.tensors.items()}
