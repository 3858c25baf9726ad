"""Annotation files from strangers: bounded, every value checked before it is used, no path that leads out."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from samcl_core.domains.annotations import Annotation, Instance
from samcl_core.domains.formats.base import SourceImage
from samcl_core.errors import DataError, UnsafeFileError
from samcl_core.files import digest_json
from samcl_core.masks import MAX_PIXELS

__all__ = [
    "MAX_BYTES",
    "Unreadable",
    "Value",
    "folders_of",
    "frame_of",
    "head_of",
    "or_unreadable",
    "read_json",
    "read_text",
    "safe_file",
    "split_of_path",
    "split_word",
    "with_test_split",
]

MAX_BYTES = 2 << 30
"""Of a file that annotates many images."""

_MAX_BYTES = 256 << 20
_HEAD_BYTES = 1 << 14
_SPLIT = re.compile(r"(?<![a-z])(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?![a-z])", re.IGNORECASE)
_WORDS = {"tr": "train", "va": "val", "te": "test"}
_MAX_COORDINATE = 1e6
_NUMBERS = frozenset({int, float})
_HINT = "correct this file"


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an annotation file, and where it stands there for messages.

    Attributes:
        file: the annotation file.
        value: as read: what JSON knows, or the text of an XML attribute or of a line.
        key: field name, place in a list, or words.
        parent: what it is part of.
    """

    file: Path
    value: Any
    key: str | int = ""
    parent: Value | None = None

    @property
    def place(self) -> str:
        """For instance ``annotations[3].segmentation``."""
        before = self.parent.place if self.parent else ""
        if isinstance(self.key, int):
            return f"{before}[{self.key}]"
        return f"{before}.{self.key}" if before and self.key else before or self.key

    def wrong(self, expected: str) -> DataError:
        """The error to raise: which file, where, what is there and what should be."""
        at = f"{self.file}: {self.place}: " if self.place else f"{self.file}: "
        return DataError(f"{at}found {reprlib.repr(self.value)}, expected {expected}", hint=_HINT)

    def __getitem__(self, key: str) -> Value:
        """A field that must be there."""
        if not isinstance(self.value, Mapping) or key not in self.value:
            raise self.wrong(f"an object with the field {key!r}")
        return Value(self.file, self.value[key], key, self)

    def get(self, key: str) -> Value | None:
        """A field, ``None`` where it is absent or null."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        found = self.value.get(key)
        return None if found is None else Value(self.file, found, key, self)

    def items(self) -> list[Value]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Value(self.file, member, at, self) for at, member in enumerate(self.value)]

    def text(self) -> str:
        """A text that can be written again."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            raise self.wrong("a text of whole characters") from None
        return self.value

    def whole(self) -> int:
        """A whole number."""
        if type(self.value) is not int:
            raise self.wrong("a whole number")
        return self.value

    def identity(self) -> int | str:
        """What objects refer to each other by: a whole number or a text."""
        return self.text() if isinstance(self.value, str) else self.whole()

    def coordinates(self) -> tuple[float, ...]:
        """A list of numbers of pixels, none farther out than any image reaches."""
        if not isinstance(self.value, list) or not _NUMBERS.issuperset(map(type, self.value)):
            raise self.wrong("a list of numbers")
        try:
            numbers = np.array(self.value, dtype=np.float64)
        except OverflowError:
            numbers = np.array([np.inf])
        if not (np.abs(numbers) <= _MAX_COORDINATE).all():
            raise self.wrong("coordinates in pixels of the image")
        return tuple(map(float, self.value))

    def outline(self, numbers: Sequence[float] | None = None) -> tuple[float, ...]:
        """``x0, y0, x1, y1, ...`` of three or more points.

        Args:
            numbers: what was read from this value; without it, its coordinates.
        """
        found = self.coordinates() if numbers is None else tuple(numbers)
        if len(found) < 6 or len(found) % 2:
            raise self.wrong(f"x, y of three or more points; these are {len(found)} numbers")
        return found


@dataclass(frozen=True)
class Unreadable:
    """The annotation of one image that cannot be understood, while others of its source can.

    Attributes:
        path: the annotation file.
        message: what is wrong with it.
    """

    path: Path
    message: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The annotation file."""
        return (self.path,)

    @property
    def size(self) -> None:
        """Unknown."""
        return

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """Raises what was wrong."""
        raise DataError(self.message, hint=_HINT)

    def digest(self) -> str:
        """Of the message."""
        return digest_json(["unreadable", self.message])


def or_unreadable(path: Path, read: Callable[[], Annotation]) -> Annotation:
    """What ``read`` returns; where it raises DataError, an annotation that says so when it is asked."""
    try:
        return read()
    except DataError as exc:
        return Unreadable(path, exc.message)


def frame_of(width: Value | None, height: Value | None) -> tuple[int, int] | None:
    """(width, height) in pixels that an annotation file gives an image; ``None`` where it gives none.

    Raises:
        DataError: one of two is missing, not positive, or the image is larger than images may be.
    """
    if width is None or height is None:
        for one in (width, height):
            if one is not None:
                raise one.wrong("both width and height, or neither")
        return None
    sides = width.whole(), height.whole()
    for value, side in zip((width, height), sides, strict=True):
        if side < 1 or sides[0] * sides[1] > MAX_PIXELS:
            raise value.wrong(f"a side of an image of 1 to {MAX_PIXELS} pixels")
    return sides


def safe_file(root: Path, path: Path) -> Path:
    """``path``, a file below ``root`` that need not be there.

    Raises:
        UnsafeFileError: a link leads out of ``root``.
    """
    try:
        is_inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        is_inside = False
    if not is_inside:
        raise UnsafeFileError(
            f"{path} is, or is behind, a link that leads out of the folder of the data set",
            hint="replace the link by the file itself",
        )
    return path


def read_text(path: Path, root: Path, max_bytes: int = _MAX_BYTES) -> str:
    """A UTF-8 text file (with or without its mark) below ``root``.

    Raises:
        UnsafeFileError: a link leads out of ``root``.
        DataError: unreadable, larger than ``max_bytes`` or not UTF-8.
    """
    try:
        if not safe_file(root, path).is_file():
            raise DataError(f"{path}: is no file", hint="remove it")
        num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise DataError(
                f"{path}: {num_bytes} bytes, expected at most {max_bytes}", hint="cut it into several files"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {exc}", hint=_HINT) from exc


def read_json(path: Path, root: Path, max_bytes: int = _MAX_BYTES) -> Value:
    """A JSON file below ``root``.

    Raises:
        UnsafeFileError: a link leads out of ``root``.
        DataError: unreadable, larger than ``max_bytes``, not JSON, or nested too deeply.
    """
    try:
        return Value(path, json.loads(read_text(path, root, max_bytes)))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{path}: cannot be read as JSON: {exc}", hint=_HINT) from exc


def folders_of(root: Path, depth: int) -> Iterator[tuple[PurePosixPath, list[str]]]:
    """Each folder at most ``depth`` below ``root``, relative to it, with the names of its files; outer ones first.

    Hidden files and folders are left out, links to folders are not followed.
    """
    pending = [PurePosixPath()]
    while pending:
        folder = pending.pop(0)
        with os.scandir(root / folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
            known = [entry for entry in shown if _is_file_or_folder(entry)]
        seen = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in known)
        yield folder, [name for name, is_folder in seen if not is_folder]
        if len(folder.parts) < depth:
            pending += [folder / name for name, is_folder in seen if is_folder]


def _is_file_or_folder(entry: os.DirEntry[str]) -> bool:
    """Pipes, devices, and links that lead nowhere or in a circle are neither."""
    try:
        return entry.is_dir() or entry.is_file()
    except OSError:
        return False


def head_of(path: Path) -> bytes:
    """The first 16 KiB of a file; nothing of what is no file."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


def split_word(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where a file or folder name says so (``instances_train2017``, ``valid``)."""
    found = _SPLIT.search(name)
    return _WORDS[found[1][:2].lower()] if found else None


def split_of_path(path: PurePosixPath) -> str | None:
    """What the innermost folder of a file that says a split says."""
    return next(filter(None, map(split_word, reversed(path.parent.parts))), None)


def with_test_split(images: Sequence[SourceImage]) -> list[SourceImage]:
    """The images sorted by path; validation images are the test split of a source that has no test images."""
    ordered = sorted(images, key=lambda image: image.path)
    if any(image.split == "test" for image in ordered):
        return ordered
    return [replace(image, split="test") if image.split == "val" else image for image in ordered]
