"""LabelMe: a JSON file for each image, beside it."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from samcl_core.domains.annotations import Annotation, Shape, Shapes
from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.index import ImageIndex
from samcl_core.domains.formats.outlines import box_outline, ellipse_outline, united
from samcl_core.domains.formats.reading import (
    Unreadable,
    Value,
    folders_of,
    frame_of,
    head_of,
    or_unreadable,
    read_json,
    split_of_path,
    with_test_split,
)
from samcl_core.domains.images import decode_image
from samcl_core.errors import DataError, ImageError, LayoutError
from samcl_core.masks import patch_to_rle

__all__ = ["LabelmeFormat"]

_WITHOUT_AREA = frozenset({"line", "linestrip", "point", "points"})
_DEPTH = 3
_MAX_LOOKS = 5
_LABELME = re.compile(rb'"(?:shapes"\s*:\s*\[|imagePath"\s*:|imageData"\s*:)')


class LabelmeFormat:
    """LabelMe JSON (``shapes``, ``imagePath``), usually ``x.json`` beside ``x.jpg``; a folder's name may say the split.

    Polygons, rectangles, circles and masks are objects; shapes of one label and ``group_id`` are one object; points and
    lines have no area and are left out. ``imageData`` is ignored. Images beside those that are annotated, without a
    JSON file of their own, lack their partner.
    """

    name = "labelme"
    described_at = "https://github.com/wkentaro/labelme"
    summary = "x.json (LabelMe: shapes, imagePath) beside each x.jpg"

    def matches(self, root: Path) -> bool:
        """Does one of the first JSON files of a folder begin as LabelMe's do?"""
        for folder, names in folders_of(root, _DEPTH):
            files = [root / folder / name for name in names if name.lower().endswith(".json")]
            if any(_LABELME.search(head_of(file)) for file in files[:_MAX_LOOKS]):
                return True
        return False

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image that a JSON file names, and every image beside them.

        Raises:
            LayoutError: no such JSON file.
            DataError: two JSON files are of one image. What is wrong in one JSON file is said when its objects are
                asked for.
            UnsafeFileError: an image's path leads out of ``root``.
        """
        index = ImageIndex(root)
        images: dict[PurePosixPath, SourceImage] = {}
        for file in _json_files(root, index):
            path, annotation = _annotated(file, root, index)
            if path in images:
                raise DataError(
                    f"{root / file}: is of {path}, which another JSON file is of, too", hint="leave one for each image"
                )
            images[path] = SourceImage(index.path_of(path), annotation, split_of_path(path))
        if not images:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        folders = {path.parent for path in images}
        bare = [path for path in index.paths() if path.parent in folders and path not in images]
        images |= {path: SourceImage(index.path_of(path), None, split_of_path(path)) for path in bare}
        return with_test_split(list(images.values()))


def _json_files(root: Path, index: ImageIndex) -> Iterator[PurePosixPath]:
    """JSON files beside an image of their name, and others that begin as LabelMe's do."""
    for folder, names in folders_of(root, _DEPTH):
        stems = {path.stem for path in index.in_folder(folder)}
        for path in (folder / name for name in names if name.lower().endswith(".json")):
            if path.stem in stems or _LABELME.search(head_of(root / path)):
                yield path


def _annotated(file: PurePosixPath, root: Path, index: ImageIndex) -> tuple[PurePosixPath, Annotation]:
    """The image of a JSON file, and what is drawn on it.

    LabelMe opens what ``imagePath`` says; where nothing is there, an image was renamed together with its JSON file.
    """
    beside = next((path for path in index.in_folder(file.parent) if path.stem == file.stem), None)
    try:
        content = read_json(root / file, root)
        found = index.find(content["imagePath"], file.parent, split=split_of_path(file))
    except DataError as exc:
        return beside or file.with_suffix(".jpg"), Unreadable(root / file, exc.message)
    path = PurePosixPath(found.relative_to(root).as_posix())
    if beside is not None and not found.is_file():
        path = beside
    return path, or_unreadable(root / file, partial(_shapes, content))


def _shapes(content: Value) -> Shapes:
    frame = frame_of(content.get("imageWidth"), content.get("imageHeight"))
    parts: list[tuple[Hashable, Shape]] = []
    for at, drawn in enumerate(content["shapes"].items()):
        shape = _shape(drawn, frame)
        group = drawn.get("group_id")
        if shape is not None:
            parts.append((at if group is None else (shape.label, group.identity()), shape))
    return Shapes(content.file, united(parts, frame), frame)


def _shape(drawn: Value, frame: tuple[int, int] | None) -> Shape | None:
    """One shape; ``None`` where it has no area."""
    label = drawn["label"].text()
    said = drawn.get("shape_type")
    kind = "polygon" if said is None else said.text()
    if kind in _WITHOUT_AREA:
        return None
    points = drawn["points"]
    corners = [corner.coordinates() for corner in points.items()]
    if any(len(corner) != 2 for corner in corners):
        raise points.wrong("a list of [x, y]")
    if kind in ("polygon", "oriented_rectangle"):
        return Shape(label, (points.outline([value for corner in corners for value in corner]),))
    if said is None or kind not in ("rectangle", "circle", "mask"):
        raise (said or drawn).wrong("polygon, rectangle, circle, mask, point, points, line or linestrip")
    if len(corners) != 2:
        raise points.wrong(f"the two points of a {kind}")
    (x0, y0), (x1, y1) = corners
    if kind == "rectangle":
        return Shape(label, (box_outline(x0, y0, x1, y1),))
    if kind == "circle":
        radius = math.dist((x0, y0), (x1, y1))
        return Shape(label, (ellipse_outline(x0, y0, radius, radius),))
    return Shape(label, rle=_mask(drawn["mask"], x0, y0, frame))


def _mask(mask: Value, x: float, y: float, frame: tuple[int, int] | None) -> dict[str, object]:
    """A base64 PNG whose upper left corner is at (x, y), as run lengths; cut at the frame, as LabelMe does."""
    if frame is None:
        raise mask.wrong("a mask in an image whose imageWidth and imageHeight are given")
    try:
        data = base64.b64decode(mask.text(), validate=True)
        patch = decode_image(data, f"{mask.file}: {mask.place}").any(axis=-1)
    except (binascii.Error, ValueError, ImageError):
        raise mask.wrong("a PNG as base64") from None
    return patch_to_rle(np.asarray(patch), round(x), round(y), *frame)
