"""What a selector that is trained remembers of each class: a few rows of what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.keeping import check_new, json_size, learnt, stored_bytes

__all__ = ["Buffers", "RowBuffers", "kept_rows"]

_Self = TypeVar("_Self", bound="RowBuffers")


def kept_rows(num: int, size: int, what: str, name: str, seed: int) -> list[int]:
    """Which of ``num`` rows class ``name`` keeps, ascending; it depends on nothing else. ``what`` names the rows."""
    if num <= size:
        return list(range(num))
    generator = torch.Generator().manual_seed(derived_seed(seed, what, name))
    rows: list[int] = torch.randperm(num, generator=generator)[:size].sort().values.tolist()
    return rows


@dataclass(frozen=True)
class RowBuffers:
    """State of a selector that keeps rows of tensors: up to ``size`` a class. What a row is, subclasses say.

    Attributes:
        size: most rows that a class keeps.
        classes: name to (n, ...) rows.
        natural: names of the classes without a module.
    """

    size: int
    classes: dict[str, Tensor] = field(default_factory=dict)
    natural: tuple[str, ...] = ()

    kind: ClassVar[str]
    what: ClassVar[str]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the classes with a module, in the order of arrival."""
        return learnt(self.classes, self.natural)

    def class_bytes(self, name: str) -> int:
        """Bytes that class ``name`` takes in the stored state: its rows and its entry."""
        return self.classes[name].nbytes + json_size(self._entry(name))

    @property
    def shared_bytes(self) -> int:
        """Bytes of the stored state beside those of the classes."""
        return stored_bytes(*self.state()) - sum(map(self.class_bytes, self.classes))

    def added(self: _Self, name: str, rows: Tensor, *, seed: int, is_natural: bool = False) -> _Self:
        """These buffers and one class more; which rows are kept depends on ``seed`` and ``name`` alone.

        Raises:
            BankError: the class is already there, or the rows do not fit.
        """
        rows = self.checked(name, rows)
        kept = rows[kept_rows(len(rows), self.size, self.what, name, seed)]
        natural = (*self.natural, name) if is_natural else self.natural
        return replace(self, classes={**self.classes, name: kept}, natural=natural)

    def checked(self, name: str, rows: Tensor) -> Tensor:
        """``rows`` of a new class as they are kept, on the CPU.

        Raises:
            BankError: the class is already there, or the rows do not fit.
        """
        raise NotImplementedError

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Classes are a list: JSON objects are stored with sorted keys."""
        values = {
            "kind": self.kind,
            "size": self.size,
            "natural": list(self.natural),
            "classes": [self._entry(name) for name in self.classes],
        }
        return values, {f"{self.what}.{name}": rows for name, rows in self.classes.items()}

    def _entry(self, name: str) -> dict[str, Any]:
        return {"name": name, "num": len(self.classes[name])}

    @classmethod
    def from_state(cls: type[_Self], values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Self:
        """The buffers that ``state`` came from.

        Raises:
            KeyError: the rows of a class are missing.
            ValueError: there are not as many as were written.
        """
        classes = {entry["name"]: tensors[f"{cls.what}.{entry['name']}"] for entry in values["classes"]}
        if wrong := [entry["name"] for entry in values["classes"] if len(classes[entry["name"]]) != entry["num"]]:
            raise ValueError(f"another number of {cls.what} rows than was written of {', '.join(wrong)}")
        return cls(int(values["size"]), classes, tuple(values["natural"]))


@dataclass(frozen=True)
class Buffers(RowBuffers):
    """State of the MLP selector: (n, C) float32 embeddings of each class."""

    kind: ClassVar[str] = "mlp"
    what: ClassVar[str] = "buffer"

    @property
    def dim(self) -> int | None:
        """Width of the embeddings; ``None`` before the first class."""
        return next((int(rows.shape[1]) for rows in self.classes.values()), None)

    def checked(self, name: str, rows: Tensor) -> Tensor:
        """(n, C) embeddings in float32.

        Raises:
            BankError: the class is already there, or the embeddings do not fit.
        """
        check_new(name, rows, self.classes, self.dim)
        return rows.detach().float().cpu()
