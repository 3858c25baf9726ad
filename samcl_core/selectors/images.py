"""What the token selector remembers of each class: a few of its images, as the backbone sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.buffers import RowBuffers, kept_rows

__all__ = ["ImageBuffers", "buffer_rows", "check_images"]


def buffer_rows(num: int, size: int, name: str, seed: int) -> list[int]:
    """Which of ``num`` images class ``name`` keeps, ascending; it depends on nothing else."""
    return kept_rows(num, size, ImageBuffers.what, name, seed)


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
class ImageBuffers(RowBuffers):
    """State of the token selector: (n, S, S, 3) uint8 RGB images of each class, squashed to the backbone's square."""

    kind: ClassVar[str] = "tokens"
    what: ClassVar[str] = "images"

    @property
    def image_size(self) -> int | None:
        """Side of the images in pixels; ``None`` before the first class."""
        return next((int(images.shape[1]) for images in self.classes.values()), None)

    def checked(self, name: str, rows: Tensor) -> Tensor:
        """The images.

        Raises:
            BankError: the class is already there, or the images are not (n, S, S, 3) uint8 of the known size.
        """
        if name in self.classes:
            raise BankError(f"the selector already knows {name!r}, expected a new domain")
        check_images(name, rows, self.image_size)
        return rows.detach().cpu()
