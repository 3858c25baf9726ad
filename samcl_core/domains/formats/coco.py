"""COCO instances: one JSON file for many images, with polygons and run lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from samcl_core.domains.annotations import Shape, Shapes
from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.index import ImageIndex, each_once
from samcl_core.domains.formats.reading import (
    MAX_BYTES,
    Value,
    folders_of,
    frame_of,
    head_of,
    or_unreadable,
    read_json,
    split_of_path,
    split_word,
    with_test_split,
)
from samcl_core.domains.images import IMAGE_SUFFIXES
from samcl_core.errors import LayoutError

__all__ = ["CocoFormat"]

_COCO = re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')
_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")


class CocoFormat:
    """COCO instances JSON, as COCO itself (``annotations/instances_train2017.json`` + ``train2017/``), as exported by
    annotation tools (``annotations/instances_default.json`` + ``images/``), and Roboflow's
    ``{train,valid,test}/_annotations.coco.json`` beside the images.

    A split is what the JSON file's name or folder says. Images of a file that are not annotated in it are negatives.
    """

    name = "coco"
    described_at = "https://cocodataset.org/#format-data"
    summary = "annotations/instances_*.json or _annotations.coco.json (COCO instances), and the images it lists"

    def matches(self, root: Path) -> bool:
        """Is there a JSON file that begins as COCO's do?"""
        return next(_candidates(root), None) is not None

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image that a file lists.

        Raises:
            LayoutError: no such JSON file.
            DataError: a file cannot be understood, or two entries are of one image. What is wrong with the objects of
                one image alone is said when they are asked for.
            UnsafeFileError: an image's path leads out of ``root``.
        """
        files = list(_candidates(root))
        if not files:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        index = ImageIndex(root)
        return with_test_split(each_once(entry for file in files for entry in _images(file, root, index)))


def _candidates(root: Path) -> Iterator[Path]:
    """JSON files at most two folders deep that begin as COCO's do; files beside an image of their name are not."""
    for folder, names in folders_of(root, 2):
        images = {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        for name in names:
            path = root / folder / name
            is_json = path.suffix.lower() == ".json" and path.stem not in images and not name.startswith(_OTHER_TASKS)
            if is_json and _COCO.search(head_of(path)):
                yield path


def _images(file: Path, root: Path, index: ImageIndex) -> Iterator[tuple[Value, SourceImage]]:
    """Each image of a file, with its entry."""
    content = read_json(file, root, MAX_BYTES)
    categories = {entry["id"].identity(): entry["name"].text() for entry in content["categories"].items()}
    entries = {entry["id"].identity(): entry for entry in content["images"].items()}
    annotations: dict[int | str, list[Value]] = {identity: [] for identity in entries}
    for annotation in content["annotations"].items():
        image = annotation["image_id"]
        if image.identity() not in annotations:
            raise image.wrong("the id of one of the images")
        annotations[image.identity()].append(annotation)
    near = PurePosixPath(file.relative_to(root).parent.as_posix())
    split = split_word(file.name) or split_of_path(near / file.name)
    for identity, entry in entries.items():
        name, objects = entry["file_name"], annotations[identity]
        shapes = or_unreadable(file, partial(_shapes, entry, objects, categories))
        path = index.find(name, near, split=split, prefer=file.stem.split("_").__contains__)
        yield name, SourceImage(path, shapes, split, is_negative=not objects)


def _shapes(entry: Value, objects: list[Value], categories: dict[int | str, str]) -> Shapes:
    frame = frame_of(entry.get("width"), entry.get("height"))
    return Shapes(entry.file, tuple(_shape(annotation, categories) for annotation in objects), frame)


def _shape(annotation: Value, categories: dict[int | str, str]) -> Shape:
    category = annotation["category_id"]
    if category.identity() not in categories:
        raise category.wrong("the id of one of the categories")
    crowd = annotation.get("iscrowd")
    if crowd is not None and crowd.value not in (0, 1):
        raise crowd.wrong("0 or 1")
    label, is_crowd = categories[category.identity()], crowd is not None and bool(crowd.value)
    drawn = annotation.get("segmentation")
    if drawn is None or drawn.value == []:
        raise annotation.wrong("polygons or run lengths in `segmentation`; a box alone says no outline")
    if isinstance(drawn.value, dict):
        return Shape(label, rle=_run_lengths(drawn), is_crowd=is_crowd)
    return Shape(label, tuple(polygon.outline() for polygon in drawn.items()), is_crowd=is_crowd)


def _run_lengths(drawn: Value) -> dict[str, object]:
    """``size`` and ``counts``; whether they fit each other is seen when they are drawn."""
    counts = drawn["counts"]
    size = [side.whole() for side in drawn["size"].items()]
    if isinstance(counts.value, str):
        return {"size": size, "counts": counts.text()}
    return {"size": size, "counts": [run.whole() for run in counts.items()]}
