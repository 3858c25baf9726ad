"""CVAT for images 1.1: one XML file for many images."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from samcl_core.domains.annotations import Shape, Shapes
from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.index import ImageIndex, each_once
from samcl_core.domains.formats.outlines import box_outline, ellipse_outline, united
from samcl_core.domains.formats.reading import (
    MAX_BYTES,
    Value,
    folders_of,
    frame_of,
    head_of,
    or_unreadable,
    safe_file,
    split_word,
    with_test_split,
)
from samcl_core.errors import DataError, LayoutError, UnsafeFileError
from samcl_core.masks import patch_to_rle

__all__ = ["CvatFormat"]

_WITHOUT_AREA = frozenset({"polyline", "points", "skeleton", "cuboid"})
_NO_SHAPE = frozenset({"tag", "attribute"})


class CvatFormat:
    """CVAT for images 1.1: ``annotations.xml`` with ``images/`` (for projects ``images/<subset>/``).

    Polygons, boxes, ellipses and masks are objects; shapes of one label and ``group_id`` are one object; points, lines,
    skeletons and cuboids have no area and are left out. Images without any shape are negatives.
    """

    name = "cvat"
    described_at = "https://docs.cvat.ai/docs/dataset_management/formats/format-xml/"
    summary = "annotations.xml (CVAT for images 1.1) and images/"

    def matches(self, root: Path) -> bool:
        """Is there an XML file that begins as CVAT's do?"""
        return bool(_files(root))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image that a file lists.

        Raises:
            LayoutError: no such XML file.
            DataError: a file cannot be understood, is of a video, or two entries are of one image. What is wrong with
                the objects of one image alone is said when they are asked for.
            UnsafeFileError: a file declares entities, or an image's path leads out of ``root``.
        """
        files = _files(root)
        if not files:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        index = ImageIndex(root)
        return with_test_split(each_once(entry for file in files for entry in _images(file, root, index)))


def _files(root: Path) -> list[Path]:
    """XML files of the folder and of those in it that begin as CVAT's do."""
    found = []
    for folder, names in folders_of(root, 1):
        for name in names:
            if name.lower().endswith(".xml") and b"<annotations" in head_of(root / folder / name):
                found.append(root / folder / name)
    return found


def _images(file: Path, root: Path, index: ImageIndex) -> Iterator[tuple[Value, SourceImage]]:
    """Each image of a file, with its name there."""
    near = PurePosixPath(file.relative_to(root).parent.as_posix())
    for at, element in enumerate(_elements(file, root)):
        image = _attributes(element, file, f"image {at}")
        name = image["name"]
        said = image.get("subset")
        subset = "" if said is None else said.text()
        shapes = [shape for shape in element if shape.tag not in _NO_SHAPE]
        annotation = or_unreadable(file, partial(_shapes, image, shapes))
        split = split_word(subset)
        found = index.find(name, near, split=split, prefer=subset.__eq__)
        yield name, SourceImage(found, annotation, split, is_negative=not shapes)
        element.clear()


def _elements(file: Path, root: Path) -> Iterator[Element]:
    """The ``image`` elements of a file, one after the other.

    Raises:
        UnsafeFileError: it declares a document type or entities, or is a link that leads out.
        DataError: not XML, larger than 2 GiB, or annotations of a video.
    """
    try:
        num_bytes = safe_file(root, file).stat().st_size
        if num_bytes > MAX_BYTES:
            raise DataError(f"{file}: {num_bytes} bytes, expected at most {MAX_BYTES}", hint="export it in parts")
        with file.open("rb") as stream:
            for _, element in iterparse(stream, forbid_dtd=True):
                if element.tag == "track":
                    raise DataError(
                        f"{file}: holds tracks of a video, expected images", hint='export it as "CVAT for images 1.1"'
                    )
                if element.tag == "image":
                    yield element
    except DefusedXmlException as exc:
        raise UnsafeFileError(f"{file}: declares entities or a document type: {exc}", hint="remove them") from exc
    except (OSError, ParseError, ValueError, LookupError) as exc:
        raise DataError(f"{file}: cannot be read as XML: {exc}", hint="export it again") from exc


def _attributes(element: Element, file: Path, key: str, parent: Value | None = None) -> Value:
    return Value(file, dict(element.attrib), key, parent)


def _shapes(image: Value, elements: list[Element]) -> Shapes:
    frame = frame_of(_whole(image["width"]), _whole(image["height"]))
    assert frame is not None
    parts: list[tuple[Hashable, Shape]] = []
    for at, element in enumerate(elements):
        entry = _attributes(element, image.file, f"{element.tag} {at}", image)
        shape = _shape(element.tag, entry, frame)
        group = entry.get("group_id")
        if shape is not None:
            parts.append((at if group is None or group.value == "0" else (shape.label, group.text()), shape))
    return Shapes(image.file, united(parts, frame), frame)


def _shape(kind: str, entry: Value, frame: tuple[int, int]) -> Shape | None:
    """One shape; ``None`` where it has no area."""
    if kind in _WITHOUT_AREA:
        return None
    if kind not in ("polygon", "box", "ellipse", "mask"):
        raise entry.wrong("a polygon, box, ellipse, mask, polyline, points, skeleton, cuboid or tag")
    label = entry["label"].text()
    if kind == "mask":
        return Shape(label, rle=_mask(entry, frame))
    if kind == "polygon":
        points = entry["points"]
        return Shape(label, (points.outline(_numbers(points, points.text().replace(";", ",").split(","))),))
    fields = ("xtl", "ytl", "xbr", "ybr") if kind == "box" else ("cx", "cy", "rx", "ry")
    a, b, c, d = (_number(entry[field]) for field in fields)
    turn = entry.get("rotation")
    outline = box_outline if kind == "box" else ellipse_outline
    return Shape(label, (outline(a, b, c, d, 0.0 if turn is None else _number(turn)),))


def _mask(entry: Value, frame: tuple[int, int]) -> dict[str, object]:
    """A mask's run lengths: row by row inside of its box, background first."""
    left, top, width, height = (_whole(entry[field]).whole() for field in ("left", "top", "width", "height"))
    if not (0 <= left < left + width <= frame[0] and 0 <= top < top + height <= frame[1]):
        raise entry.wrong(f"a box inside of the image of {frame[0]}x{frame[1]} pixels")
    said = entry["rle"]
    try:
        runs = [int(run) for run in said.text().split(",")]
    except ValueError:
        raise said.wrong("whole numbers, separated by commas") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise said.wrong(f"run lengths that add up to {width} x {height} = {width * height}")
    patch = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return patch_to_rle(patch, left, top, *frame)


def _whole(value: Value) -> Value:
    """The whole number that an attribute says."""
    try:
        return Value(value.file, int(value.text()), value.key, value.parent)
    except ValueError:
        raise value.wrong("a whole number") from None


def _number(value: Value) -> float:
    return _numbers(value, [value.text()])[0]


def _numbers(value: Value, texts: list[str]) -> tuple[float, ...]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise value.wrong("numbers of pixels") from None
    return Value(value.file, numbers, value.key, value.parent).coordinates()
