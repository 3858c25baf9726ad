"""YOLO segmentation: one text file for each image, a polygon a line, and a ``data.yaml``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.domains.annotations import Annotation, Shape, Shapes
from samcl_core.domains.formats.base import CARD, ReadOptions, SourceImage
from samcl_core.domains.formats.index import ImageIndex, plain_path
from samcl_core.domains.formats.reading import (
    Value,
    folders_of,
    head_of,
    or_unreadable,
    read_text,
    split_of_path,
    split_word,
    with_test_split,
)
from samcl_core.errors import DataError, LayoutError, UnsafeFileError

__all__ = ["YoloFormat"]

_SPLITS = ("train", "val", "test")
_YAML = (".yaml", ".yml")
_MAX_YAML_BYTES = 1 << 20
_TOLERANCE = 0.01
"""Coordinates may be so far outside of 0..1; Ultralytics allows as much."""


class YoloFormat:
    """YOLO segmentation as Ultralytics describes it: ``images/**/x.jpg`` + ``labels/**/x.txt`` (also below ``train/``,
    ``valid/``, ``test/``), and ``data.yaml`` with ``names`` and the folders or lists of ``train``, ``val``, ``test``.

    An image without a label file, or with an empty one, is a negative: the format says so. Without a ``data.yaml`` the
    classes are called by their numbers, and splits are what folders say.
    """

    name = "yolo"
    described_at = "https://docs.ultralytics.com/datasets/segment/"
    summary = "images/ and labels/*.txt with polygons (also per train/valid/test), data.yaml with names (YOLO)"

    def matches(self, root: Path) -> bool:
        """Are there text files in ``labels`` beside ``images``, and either a ``data.yaml`` or no other folder there?"""
        folders = dict(folders_of(root, 3))
        labels = [
            folder
            for folder, names in folders.items()
            if "labels" in folder.parts and any(name.lower().endswith(".txt") for name in names)
        ]
        places = {_parent_of_labels(folder) for folder in labels}
        if not any(place / "images" in folders for place in places):
            return False
        others = {folder.name for folder in folders if folder.name and folder.parent in places} - {"images", "labels"}
        return any(map(_is_description, root.iterdir())) or not any(split_word(name) is None for name in others)

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image of a split, and label files without an image. An image of two splits is of the first.

        Raises:
            LayoutError: there is no folder ``labels`` beside ``images``.
            DataError: ``data.yaml`` cannot be understood, or names a folder that is not there. What is wrong in one
                image's label file is said when its objects are asked for.
            UnsafeFileError: a path in ``data.yaml`` or in a list leads out of ``root``.
        """
        index = ImageIndex(root)
        description = _description(root)
        names = None if description is None else _names(description)
        images: dict[PurePosixPath, SourceImage] = {}
        for split, path in _listed(root, index, description):
            if path not in images:
                label = root / _label_of(path)
                annotation = or_unreadable(label, partial(_shapes, label, root, names))
                is_negative = isinstance(annotation, Shapes) and not annotation.shapes
                images[path] = SourceImage(index.path_of(path), annotation, split, is_negative=is_negative)
        if not images:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return with_test_split([*images.values(), *_without_image(root, images, names)])


def _parent_of_labels(folder: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(*folder.parts[: folder.parts.index("labels")])


def _label_of(image: PurePosixPath) -> PurePosixPath:
    """The label file of an image: the last folder ``images`` becomes ``labels`` (Ultralytics' rule)."""
    parts = list(image.parts)
    for at in reversed(range(len(parts) - 1)):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return PurePosixPath(*parts).with_suffix(".txt")


def _is_description(path: Path) -> bool:
    """Is it a YAML file that says ``names``?"""
    if path.suffix.lower() not in _YAML or path.name == CARD:
        return False
    return re.search(rb"^names\s*:", head_of(path), re.MULTILINE) is not None


def _description(root: Path) -> Value | None:
    """The YAML file of ``root`` that says ``names``, ``data.yaml`` first."""
    files = sorted(filter(_is_description, root.iterdir()), key=lambda path: (path.stem != "data", path.name))
    return _yaml(files[0], root) if files else None


def _yaml(path: Path, root: Path) -> Value:
    try:
        return Value(path, YAML(typ="safe", pure=True).load(read_text(path, root, _MAX_YAML_BYTES)))
    except (YAMLError, ValueError, RecursionError) as exc:
        raise DataError(
            f"{path}: cannot be read as YAML: {' '.join(str(exc).split())}", hint="correct this file"
        ) from exc


def _names(description: Value) -> dict[int, str]:
    """Class number to name: a list, or numbers and names."""
    points = description.get("kpt_shape")
    if points is not None:
        raise points.wrong("no key points: their lines look like outlines and are none")
    names = description["names"]
    if isinstance(names.value, list):
        return {at: name.text() for at, name in enumerate(names.items())}
    if not isinstance(names.value, Mapping) or any(type(key) is not int for key in names.value):
        raise names.wrong("a list of names, or names by number")
    return {key: Value(names.file, name, key, names).text() for key, name in names.value.items()}


def _listed(root: Path, index: ImageIndex, description: Value | None) -> Iterator[tuple[str | None, PurePosixPath]]:
    """(split, path below ``root``) of each image, by split."""
    paths = index.paths()
    if description is None or not any(description.get(split) for split in _SPLITS):
        for path in paths:
            if "images" in path.parent.parts:
                yield split_of_path(path), path
        return
    for split in _SPLITS:
        said = description.get(split)
        for entry in [] if said is None else said.items() if isinstance(said.value, list) else [said]:
            place = _place(root, entry, description)
            if (root / place).is_dir():
                yield from ((split, path) for path in paths if place in path.parents)
            else:
                yield from ((split, path) for path in _lines(root, place, index))


def _place(root: Path, entry: Value, description: Value) -> PurePosixPath:
    """A folder or list that ``data.yaml`` names. Its ``path`` counts where it leads to one; it often is the place on
    the machine of whoever made the file. ``../train/images`` of Roboflow's files is ``train/images``."""
    base = description.get("path")
    text = entry.text().replace("\\", "/")
    spelled = [Value(entry.file, _without_ups(text), entry.key, entry.parent), entry]
    if base is not None:
        spelled.insert(0, Value(entry.file, f"{base.text()}/{text}", entry.key, entry.parent))
    for value in spelled:
        try:
            place = plain_path(value)
        except UnsafeFileError:
            if value is entry:
                raise
            continue
        if (root / place).exists():
            return place
    raise entry.wrong(f"a folder of images, or a list of them, below {root.name}")


def _without_ups(text: str) -> str:
    while text.startswith("../"):
        text = text[3:]
    return text


def _lines(root: Path, listing: PurePosixPath, index: ImageIndex) -> Iterator[PurePosixPath]:
    """The images that a list names, a path a line; ``./`` is the list's folder."""
    for at, line in enumerate(read_text(root / listing, root).splitlines(), 1):
        if line.strip():
            value = Value(root / listing, line.strip(), f"line {at}")
            yield PurePosixPath(index.find(value, listing.parent).relative_to(root).as_posix())


def _shapes(label: Path, root: Path, names: Mapping[int, str] | None) -> Annotation:
    """The objects of a label file; none where it is not there."""
    lines = enumerate(read_text(label, root).splitlines() if label.is_file() else (), 1)
    shapes = tuple(_shape(Value(label, line, f"line {at}"), names) for at, line in lines if line.strip())
    return Shapes(label, shapes, is_relative=True)


def _shape(line: Value, names: Mapping[int, str] | None) -> Shape:
    number, *coordinates = line.text().split()
    if len(coordinates) == 4:
        raise line.wrong("a class and x, y of three or more points; 4 numbers are a box (or two points), no outline")
    try:
        at, numbers = int(number), [float(text) for text in coordinates]
    except ValueError:
        raise line.wrong("a class number and coordinates, separated by spaces") from None
    if at < 0 or (names is not None and at not in names):
        raise line.wrong(f"a class number that data.yaml names ({len(names or ())} names)")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in numbers):
        raise line.wrong("coordinates from 0 to 1, shares of the image's width and height")
    return Shape(str(at) if names is None else names[at], (line.outline(numbers),))


def _without_image(
    root: Path, images: Collection[PurePosixPath], names: Mapping[int, str] | None
) -> Sequence[SourceImage]:
    """Label files in the folders of the images' labels that belong to none of them."""
    labels = {_label_of(image) for image in images}
    found = []
    for folder in sorted({label.parent for label in labels if "labels" in label.parts}):
        files = sorted(filter(Path.is_file, (root / folder).glob("*.txt")))
        for file in files:
            if folder / file.name not in labels and file.name != "classes.txt":
                found.append(SourceImage(None, or_unreadable(file, partial(_shapes, file, root, names))))
    return found
