"""What an image's annotation says, whatever it is stored in: mask files, label maps, polygons or run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samcl_core.domains.images import load_codes, load_mask
from samcl_core.errors import DataError
from samcl_core.files import digest_json, sha256_file
from samcl_core.masks import mask_from_rle, polygons_to_mask

__all__ = [
    "Annotation",
    "Code",
    "CodedMask",
    "Instance",
    "MaskFiles",
    "Shape",
    "Shapes",
    "codes_of",
    "refuse_too_many",
    "union_of",
]

_MAX_DRAWN_PIXELS = 4 << 30
"""Of all objects of an image together: each has a mask of the whole image, a byte a pixel."""

Code = int | tuple[int, int, int]
"""What stands for a class in a mask file: an index (or grey value), or a colour (red, green, blue)."""


@dataclass(frozen=True)
class Instance:
    """One annotated object of an image.

    Attributes:
        mask: (H, W) bool.
        label: its class, empty where the source has no classes.
        is_crowd: a group of objects that the source marks as not told apart.
    """

    mask: NDArray[np.bool_]
    label: str = ""
    is_crowd: bool = False


class Annotation(Protocol):
    """The annotation of one image, read only when it is asked for.

    Attributes:
        size: (width, height) of the frame it is drawn in, ``None`` where it does not say.
    """

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it is read from; the first one names it in messages."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of the frame it is drawn in; ``None``: what its files say, or the image's."""
        ...

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """Every object, in the order of the source.

        Args:
            size: (width, height) to draw in where the annotation has no size of its own.
            threshold: grey values of a mask file from here on are foreground.

        Raises:
            ImageError: a mask file cannot be read.
            DataError: the annotation cannot be drawn; the message names its file.
        """
        ...

    def digest(self) -> str:
        """Changes when the annotation of this image changes, and only then. Reads files, decodes none."""
        ...


@dataclass(frozen=True)
class MaskFiles:
    """One or several mask files, each of them one object; with one file, the object is that file's foreground.

    Attributes:
        paths: the mask files.
        labels: a class for each file; empty for none.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The mask files."""
        return self.paths

    @property
    def size(self) -> None:
        """The files say it."""
        return

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """One for each file that has foreground; of a single file always one."""
        labels = self.labels or ("",) * len(self.paths)
        found = [Instance(load_mask(path, threshold), label) for path, label in zip(self.paths, labels, strict=True)]
        _refuse_mixed_sizes(self.paths, [instance.mask for instance in found])
        return found if len(found) == 1 else [instance for instance in found if instance.mask.any()]

    def digest(self) -> str:
        """Of the files' bytes and labels."""
        return digest_json([[sha256_file(path) for path in self.paths], self.labels])


@dataclass(frozen=True)
class CodedMask:
    """A file whose values mean classes or objects: an indexed or grey file, or a colour-coded one.

    Attributes:
        path: the file.
        classes: code to class; codes that are not in it are background. ``None``: every value but 0 (and but ``void``)
            is an object of its own without a class.
        void: the value that marks borders and unknown areas (255 in Pascal VOC), ``None`` for none.
    """

    path: Path
    classes: Mapping[Code, str] | None = None
    void: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def size(self) -> None:
        """The file says it."""
        return

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """One for each code that occurs, by ascending code."""
        if self.classes is None:
            codes = load_codes(self.path, is_coloured=False)
            values = [int(value) for value in np.unique(codes) if value not in (0, self.void)]
            refuse_too_many(self.path, len(values), codes.size)
            return [Instance(codes == value) for value in values]
        is_coloured = any(isinstance(code, tuple) for code in self.classes)
        codes = load_codes(self.path, is_coloured=is_coloured)
        packed = {_packed(code): label for code, label in self.classes.items()}
        present = set(np.unique(codes).tolist())
        refuse_too_many(self.path, len(present & set(packed)), codes.size)
        return [Instance(codes == code, label) for code, label in sorted(packed.items()) if code in present]

    def digest(self) -> str:
        """Of the file's bytes and the meaning of its codes."""
        classes = (
            None if self.classes is None else sorted([_packed(code), label] for code, label in self.classes.items())
        )
        return digest_json([sha256_file(self.path), classes, self.void])


@dataclass(frozen=True)
class Shape:
    """One object as geometry.

    Attributes:
        label: its class.
        polygons: its outlines, each ``x0, y0, x1, y1, ...`` in pixels of the annotation's frame; united.
        rle: COCO run lengths in its place: ``{"size": [H, W], "counts": text or numbers}``.
        is_crowd: a group of objects that the source marks as not told apart.
    """

    label: str = ""
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: Mapping[str, object] | None = None
    is_crowd: bool = False


@dataclass(frozen=True)
class Shapes:
    """Polygons and run lengths from an annotation file.

    Attributes:
        path: the annotation file.
        shapes: of one image, in the order of the file.
        frame: (width, height) in pixels that the file says the image has; ``None`` where it does not.
        is_relative: coordinates are shares of width and height (YOLO), not pixels.
    """

    path: Path
    shapes: tuple[Shape, ...]
    frame: tuple[int, int] | None = None
    is_relative: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotation file."""
        return (self.path,)

    @property
    def size(self) -> tuple[int, int] | None:
        """The frame that the file names."""
        return self.frame

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """One for each shape."""
        width, height = self.frame or size
        refuse_too_many(self.path, len(self.shapes), width * height)
        return [Instance(self._draw(shape, width, height), shape.label, shape.is_crowd) for shape in self.shapes]

    def digest(self) -> str:
        """Of the shapes; another image's shapes in the same file do not count."""
        content = [[shape.label, shape.polygons, shape.rle, shape.is_crowd] for shape in self.shapes]
        return digest_json([content, self.frame, self.is_relative])

    def _draw(self, shape: Shape, width: int, height: int) -> NDArray[np.bool_]:
        try:
            if shape.rle is not None:
                mask = mask_from_rle(shape.rle)
                if mask.shape != (height, width):
                    raise DataError(f"run lengths of {mask.shape[1]}x{mask.shape[0]} pixels, expected {width}x{height}")
                return mask
            scale = (width, height) if self.is_relative else (1, 1)
            polygons = [[value * scale[at % 2] for at, value in enumerate(polygon)] for polygon in shape.polygons]
            return polygons_to_mask(polygons, width, height)
        except DataError as exc:
            raise DataError(f"{self.path}: {exc.message}", hint="correct this file") from exc


def refuse_too_many(path: Path, num_objects: int, num_pixels: int) -> None:
    """Nothing, when so many objects of an image of so many pixels can be held in memory.

    Raises:
        DataError: they take more than 4 GiB.
    """
    if num_objects * num_pixels > _MAX_DRAWN_PIXELS:
        raise DataError(
            f"{path}: {num_objects} objects in an image of {num_pixels} pixels, expected at most"
            f" {_MAX_DRAWN_PIXELS // num_pixels}",
            hint="cut the image into tiles",
        )


def union_of(instances: Sequence[Instance], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Foreground of all instances, (H, W) bool; ``size`` (width, height) where there is none."""
    if not instances:
        return np.zeros((size[1], size[0]), dtype=bool)
    mask = instances[0].mask
    for instance in instances[1:]:
        mask = mask | instance.mask
    return mask


def codes_of(classes: Mapping[str, int | str] | None) -> dict[Code, str]:
    """Code to class, of a user's class to value or ``#rrggbb``."""
    found: dict[Code, str] = {}
    for label, code in (classes or {}).items():
        if isinstance(code, str):
            red, green, blue = bytes.fromhex(code.removeprefix("#"))
            found[red, green, blue] = label
        else:
            found[code] = label
    return found


def _packed(code: Code) -> int:
    """A code as ``load_codes`` gives it."""
    return code if isinstance(code, int) else (code[0] << 16) | (code[1] << 8) | code[2]


def _refuse_mixed_sizes(paths: Sequence[Path], masks: Sequence[NDArray[np.bool_]]) -> None:
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise DataError(
                f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels,"
                f" {paths[0].name} is {masks[0].shape[1]}x{masks[0].shape[0]}",
                hint="masks of one image must have one size",
            )
