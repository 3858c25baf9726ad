"""What a source format is, the registry of formats, and how files are paired."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from samcl_core.domains.annotations import Annotation, Code, MaskFiles
from samcl_core.domains.images import IMAGE_SUFFIXES
from samcl_core.domains.points import read_object
from samcl_core.errors import LayoutError, UsageError

__all__ = [
    "CARD",
    "Format",
    "ReadOptions",
    "SourceImage",
    "bare_stem",
    "detect_format",
    "format_names",
    "get_format",
    "image_files",
    "pair_files",
    "register_format",
    "source_points",
    "split_of",
    "unwrap",
]

CARD = "domain.yaml"
"""What a data set may say about itself; no part of its layout."""

_MASK_AFFIX = re.compile(
    r"^(?:mask|gt|seg|label)[_-]|[_-](?:mask|masks|gt|seg|segmentation|label|labels|groundtruth|ground_truth)$", re.I
)
_IMAGE_AFFIX = re.compile(r"^(?:image|img|rgb)[_-]|[_-](?:image|img|rgb)$", re.I)
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


@dataclass(frozen=True)
class SourceImage:
    """One image of a source and what is annotated on it.

    Attributes:
        image: the image file, ``None`` for a mask without an image.
        annotation: what is drawn on it, ``None`` for an image without any: a partner that is missing.
        split: ``train``, ``val``, ``test`` or ``None`` where the source does not say.
        points: the source's own entry for this mask (``[[[x, y], ...], [label, ...]]``, 1024 frame), unchecked.
        group: images of one group (patient, scene, video) never stand in two splits; empty where the source does not
            say.
        is_negative: the source says that there is no object in this image (``good`` of MVTec AD).
    """

    image: Path | None
    annotation: Annotation | None
    split: str | None = None
    points: Any = None
    group: str = ""
    is_negative: bool = False

    @property
    def path(self) -> Path:
        """The image, or what annotates it where there is no image: names this entry in messages."""
        if self.image is not None:
            return self.image
        assert self.annotation is not None
        return self.annotation.files[0]


@dataclass(frozen=True)
class ReadOptions:
    """What a user says about a source that its files do not.

    Attributes:
        codes: code in coded mask files (value, or red, green, blue) to class. Only for formats with ``reads_codes``.
    """

    codes: Mapping[Code, str] = field(default_factory=dict)


class Format(Protocol):
    """How a data set is laid out.

    Attributes:
        name: what ``domains.<D>.format`` calls it.
        summary: one line for error messages: what it expects to find.
        described_at: where the layout is described: an address or a paper.

    A format whose mask files can be coded says ``reads_codes = True``; without it `codes` are refused.
    """

    name: str
    summary: str
    described_at: str

    def matches(self, root: Path) -> bool:
        """Does this folder look like the format? Cheap: reads names, and no more of a file than how it begins."""
        ...

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and every annotation below ``root``, sorted by path; partners that are missing are ``None``.

        An image that an annotation file lists and that is not there keeps the path at which it should be. What is wrong
        with the annotation of one image alone is raised by that annotation.

        Annotation files (JSON, XML, text) are read; images and mask files are not opened.

        Raises:
            LayoutError: the folders are not laid out so.
            DataError: an annotation file cannot be understood; the message names it.
            UnsafeFileError: an annotation file leads out of ``root``, or asks for more than to be read.
        """
        ...


_FORMATS: dict[str, Format] = {}


def register_format(source_format: Format) -> None:
    """Make a format known. Formats are tried in the order of registration.

    Raises:
        ValueError: another format has this name.
    """
    if source_format.name in _FORMATS:
        raise ValueError(f"format {source_format.name!r} is registered already")
    _FORMATS[source_format.name] = source_format


def format_names() -> tuple[str, ...]:
    """Names of all formats, in the order in which they are tried."""
    return tuple(_FORMATS)


def get_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in _FORMATS:
        raise UsageError(
            f"format {name!r} is unknown, expected auto or one of {', '.join(_FORMATS)}",
            hint="correct domains.<name>.format in params.yaml",
        )
    return _FORMATS[name]


def detect_format(root: Path) -> Format:
    """The first format that a folder looks like.

    Raises:
        LayoutError: none; the message says what is there and what each format expects.
    """
    if not root.is_dir():
        raise LayoutError(f"{root} is not a folder", hint="give the folder that holds the images and masks")
    for source_format in _FORMATS.values():
        if source_format.matches(root):
            return source_format
    found = sorted(f"{path.name}/" if path.is_dir() else path.name for path in _visible(root))
    listing = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    expected = "".join(f"\n  - {f.name}: {f.summary}" for f in _FORMATS.values())
    raise LayoutError(
        f"{root}: no known layout. Found: {listing or 'nothing'}. Expected one of:{expected}",
        hint="rearrange the folder, or give the folder inside it that holds the data",
    )


def unwrap(root: Path) -> Path:
    """``root``, or the folder inside it while there is nothing else in it: archives often add such levels."""
    while True:
        inside = _visible(root) if root.is_dir() else []
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in _SPLIT_NAMES:
            return root
        root = inside[0]


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder (by suffix, not hidden), sorted by name."""
    suffixes = tuple(IMAGE_SUFFIXES)
    with os.scandir(folder) as entries:
        # What a folder says of a plain file saves asking the file.
        names = sorted(
            entry.name
            for entry in entries
            if _is_visible(entry.name)
            and entry.name.lower().endswith(suffixes)
            and (entry.is_file(follow_symlinks=False) or Path(entry.path).is_file())
        )
    return [folder / name for name in names]


def split_of(folder_name: str, siblings: Sequence[str]) -> str | None:
    """The split a folder's name stands for; ``None`` when it is not a split.

    A validation folder is the test split of a source without a test folder.
    """
    split = _SPLIT_NAMES.get(folder_name.lower())
    if split == "val":
        has_test = any(_SPLIT_NAMES.get(name.lower()) == "test" for name in siblings)
        return "val" if has_test else "test"
    return split


def bare_stem(name: str) -> str:
    """A file name without suffix and mark of a mask: ``x_mask.png``, ``x-gt.png`` and ``mask_x.png`` are ``x``."""
    return _MASK_AFFIX.sub("", Path(name).stem)


def _stem(name: str) -> str:
    return Path(name).stem


def _bare_image_stem(name: str) -> str:
    return _IMAGE_AFFIX.sub("", _stem(name))


def _same(name: str) -> str:
    return name


_PAIRINGS = ((_same, _same), (_stem, _stem), (_stem, bare_stem), (_bare_image_stem, bare_stem))


def pair_files(
    images: Sequence[Path], masks: Sequence[Path], split: str | None, points: dict[str, Any] | None = None
) -> list[SourceImage]:
    """Pair files by name: the same name, else the same stem, else the stem without ``_mask``, ``img_`` and the like.

    Every file is in exactly one pair. ``points`` are entries by mask file name.
    """
    free = {mask.name: mask for mask in masks}
    chosen: dict[Path, Path] = {}
    for image_key, mask_key in _PAIRINGS:
        if not free:
            break
        by_key = {mask_key(name): name for name in sorted(free, reverse=True)}
        for image in images:
            if image not in chosen and (name := by_key.get(image_key(image.name))) in free:
                chosen[image] = free.pop(name)
    entries = points or {}
    pairs = [
        SourceImage(image, MaskFiles((mask,)) if mask else None, split, entries.get(mask.name) if mask else None)
        for image, mask in ((image, chosen.get(image)) for image in images)
    ]
    return pairs + [SourceImage(None, MaskFiles((mask,)), split) for mask in free.values()]


def source_points(masks: Path) -> dict[str, Any]:
    """Entries of the ``points.json`` beside masks, unchecked; empty when there is none.

    Raises:
        DataError: it is not a JSON object.
    """
    path = masks / "points.json"
    return read_object(path) if path.is_file() else {}


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_visible(path.name))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini", CARD)
