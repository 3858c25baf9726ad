"""What the MLP selector remembers of each class: some of its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.keeping import check_new, json_size, learnt, stored_bytes

__all__ = ["Buffers"]


@dataclass(frozen=True)
class Buffers:
    """State of the MLP selector: up to ``size`` float32 embeddings a class.

    Attributes:
        size: most embeddings that a class keeps.
        classes: name to (n, C) float32 embeddings.
        natural: names of the classes without a module.
    """

    size: int
    classes: dict[str, Tensor] = field(default_factory=dict)
    natural: tuple[str, ...] = ()

    kind = "mlp"

    @property
    def dim(self) -> int | None:
        """Width of the embeddings; ``None`` before the first class."""
        return next((int(rows.shape[1]) for rows in self.classes.values()), None)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the classes with a module, in the order of arrival."""
        return learnt(self.classes, self.natural)

    def class_bytes(self, name: str) -> int:
        """Bytes that class ``name`` takes in the stored state: its embeddings and its entry."""
        return self.classes[name].nbytes + json_size(self._entry(name))

    @property
    def shared_bytes(self) -> int:
        """Bytes of the stored state beside those of the classes."""
        return stored_bytes(*self.state()) - sum(map(self.class_bytes, self.classes))

    def added(self, name: str, embeddings: Tensor, *, seed: int, is_natural: bool = False) -> Buffers:
        """These buffers and one class more; which rows are kept depends on ``seed`` and ``name`` alone.

        Raises:
            BankError: the class is already there, or the embeddings do not fit.
        """
        check_new(name, embeddings, self.classes, self.dim)
        kept = embeddings.detach().float().cpu()
        if len(kept) > self.size:
            generator = torch.Generator().manual_seed(derived_seed(seed, "buffer", name))
            kept = kept[torch.randperm(len(kept), generator=generator)[: self.size].sort().values]
        natural = (*self.natural, name) if is_natural else self.natural
        return replace(self, classes={**self.classes, name: kept.clone()}, natural=natural)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Classes are a list: JSON objects are stored with sorted keys."""
        values = {
            "kind": self.kind,
            "size": self.size,
            "natural": list(self.natural),
            "classes": [self._entry(name) for name in self.classes],
        }
        return values, {f"buffer.{name}": rows for name, rows in self.classes.items()}

    def _entry(self, name: str) -> dict[str, Any]:
        return {"name": name, "num": len(self.classes[name])}

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Buffers:
        """The buffers that ``state`` came from."""
        classes = {c["name"]: tensors[f"buffer.{c['name']}"] for c in values["classes"]}
        return Buffers(int(values["size"]), classes, tuple(values["natural"]))
