"""What the token selector remembers of each class: a few of its images, as the backbone sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.keeping import json_size, learnt, stored_bytes

__all__ = ["ImageBuffers", "buffer_rows", "check_images"]


def buffer_rows(num: int, size: int, name: str, seed: int) -> list[int]:
    """Which of ``num`` images class ``name`` keeps, ascending; it depends on nothing else."""
    if num <= size:
        return list(range(num))
    generator = torch.Generator().manual_seed(derived_seed(seed, "images", name))
    rows: list[int] = torch.randperm(num, generator=generator)[:size].sort().values.tolist()
    return rows


def check_images(name: str, images: Tensor, size_px: int | None = None) -> None:
    """See that ``images`` are (n, S, S, 3) uint8 with n > 0, and of side ``size_px`` where that is given.

    Raises:
        BankError: they are not.
    """
    shape = tuple(images.shape)
    side = shape[1] if size_px is None and len(shape) == 4 else size_px
    if images.dtype != torch.uint8 or shape != (shape[0] if shape else 0, side, side, 3) or 0 in shape:
        expected = f"(n, {side}, {side}, 3)" if size_px else "(n, S, S, 3)"
        raise BankError(f"images of {name} are {shape} {images.dtype}, expected {expected} torch.uint8 with n > 0")


@dataclass(frozen=True)
class ImageBuffers:
    """State of the token selector: up to ``size`` images a class, squashed to the backbone's square.

    Attributes:
        size: most images that a class keeps.
        classes: name to (n, S, S, 3) uint8 RGB.
        natural: names of the classes without a module.
    """

    size: int
    classes: dict[str, Tensor] = field(default_factory=dict)
    natural: tuple[str, ...] = ()

    kind = "tokens"

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels; ``None`` before the first class."""
        return next((int(images.shape[1]) for images in self.classes.values()), None)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the classes with a module, in the order of arrival."""
        return learnt(self.classes, self.natural)

    def class_bytes(self, name: str) -> int:
        """Bytes that class ``name`` takes in the stored state: its images and its entry."""
        return self.classes[name].nbytes + json_size(self._entry(name))

    @property
    def shared_bytes(self) -> int:
        """Bytes of the stored state beside those of the classes."""
        return stored_bytes(*self.state()) - sum(map(self.class_bytes, self.classes))

    def added(self, name: str, images: Tensor, *, seed: int, is_natural: bool = False) -> ImageBuffers:
        """These buffers and one class more; which images are kept depends on ``seed`` and ``name`` alone.

        Raises:
            BankError: the class is already there, or the images are not (n, S, S, 3) uint8 of the known size.
        """
        if name in self.classes:
            raise BankError(f"the selector already knows {name!r}, expected a new domain")
        check_images(name, images, self.image_size)
        kept = images.detach().cpu()[buffer_rows(len(images), self.size, name, seed)]
        natural = (*self.natural, name) if is_natural else self.natural
        return replace(self, classes={**self.classes, name: kept}, natural=natural)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors for storage. Classes are a list: JSON objects are stored with sorted keys."""
        values = {
            "kind": self.kind,
            "size": self.size,
            "natural": list(self.natural),
            "classes": [self._entry(name) for name in self.classes],
        }
        return values, {f"images.{name}": images for name, images in self.classes.items()}

    def _entry(self, name: str) -> dict[str, Any]:
        return {"name": name, "num": len(self.classes[name])}

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ImageBuffers:
        """The buffers that ``state`` came from.

        Raises:
            KeyError: the images of a class are missing.
            ValueError: there are not as many as were written.
        """
        classes = {entry["name"]: tensors[f"images.{entry['name']}"] for entry in values["classes"]}
        if wrong := [e["name"] for e in values["classes"] if len(classes[e["name"]]) != e["num"]]:
            raise ValueError(f"another number of images than was written of {', '.join(wrong)}")
        return ImageBuffers(int(values["size"]), classes, tuple(values["natural"]))
