"""Pascal VOC segmentation: a map of classes and a map of objects for each image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from samcl_core.domains.annotations import Code, Instance, refuse_too_many
from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.index import ImageIndex, plain_path
from samcl_core.domains.formats.reading import (
    Value,
    read_text,
    safe_file,
    split_word,
    with_test_split,
)
from samcl_core.domains.images import image_info, load_codes
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import digest_json, sha256_file

__all__ = ["VOC_CLASSES", "VocFormat", "VocMaps"]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The classes of the VOC challenges; the first is index 1."""

_VOID = 255
_OBJECTS = "SegmentationObject"
_LISTS = ("train", "val", "test", "trainval")
_NO_OBJECT = frozenset({"__ignore__", "_background_", "background", "ignore", "void"})


class VocFormat:
    """Pascal VOC segmentation: ``JPEGImages/x.jpg``, ``SegmentationClass/x.png``, ``SegmentationObject/x.png``, and
    lists of names in ``ImageSets/Segmentation/{train,val,trainval,test}.txt``.

    Without lists every image counts; a list without a single mask is of images whose masks are not published, and is
    left out. Classes are the twenty of VOC unless the options, ``labelmap.txt`` (CVAT) or ``class_names.txt`` (LabelMe)
    say others. Without a map of objects, all pixels of a class are one object.
    """

    name = "voc"
    described_at = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html"
    reads_codes = True
    summary = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/*.txt (Pascal VOC)"

    def matches(self, root: Path) -> bool:
        """Are ``JPEGImages`` and ``SegmentationClass`` there?"""
        return (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir()

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image of a list; one of two lists is of the first of train, val, test and others.

        Raises:
            LayoutError: the folders are not there.
            DataError: a list or the names of the classes cannot be understood.
            UnsafeFileError: a name in a list leads out of ``root``.
        """
        if not self.matches(root):
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        classes = options.codes or _classes(root)
        images, annotated, objects = (_files(root, name) for name in ("JPEGImages", "SegmentationClass", _OBJECTS))
        found: dict[PurePosixPath, SourceImage] = {}
        for name, split in _listed(root, annotated) or [(name, None) for name in {**images, **annotated}]:
            if name not in found:
                maps = None
                if name in annotated:
                    maps = VocMaps(annotated[name], objects.get(name), classes, is_partial=bool(options.codes))
                image = images.get(name) or safe_file(root, root / "JPEGImages" / f"{name}.jpg")
                found[name] = SourceImage(image, maps, split)
        return with_test_split(list(found.values()))


@dataclass(frozen=True)
class VocMaps:
    """The maps of one image: objects are told apart by one file, their classes are in the other.

    Attributes:
        class_map: file with the class of each pixel: an index (or grey value), or a colour.
        object_map: file with another value for each object; ``None`` where all pixels of a class are one object.
        classes: code in the class map to class; an index also stands for its colour of the VOC palette.
        is_partial: other codes than those, background (0) and void (255) are no objects. Otherwise they are an error.
    """

    class_map: Path
    object_map: Path | None
    classes: Mapping[Code, str]
    is_partial: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The maps."""
        return (self.class_map,) if self.object_map is None else (self.class_map, self.object_map)

    @property
    def size(self) -> None:
        """The files say it."""
        return

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """Every object with its class, by the values of the map of objects and then of the map of classes.

        Raises:
            ImageError: a map cannot be read.
            DataError: the maps are of two sizes, or a code has no class.
        """
        codes, is_coloured = _read(self.class_map, any(isinstance(code, tuple) for code in self.classes))
        labels = {_packed(code, is_coloured=is_coloured): label for code, label in self.classes.items()}
        nothing = [_packed(code, is_coloured=is_coloured) for code in (0, _VOID)]
        unknown = sorted(set(np.unique(codes).tolist()) - {*labels, *nothing})
        if unknown and not self.is_partial:
            raise DataError(
                f"{self.class_map}: holds the {'colour' if is_coloured else 'value'} {_shown(unknown[0], is_coloured)},"
                f" expected those of {len(labels)} classes, background or void",
                hint="give `codes` in domain.yaml, or a labelmap.txt beside JPEGImages",
            )
        codes[np.isin(codes, [*unknown, *nothing, *(code for code, label in labels.items() if not label)])] = -1
        objects = self._objects(codes.shape)
        drawn = (objects > 0) & (codes >= 0)
        both = np.unique(objects[drawn].astype(np.int64) << 32 | codes[drawn])
        pairs = [(one >> 32, one & 0xFFFFFFFF) for one in both.tolist()]
        refuse_too_many(self.class_map, len(pairs), codes.size)
        return [Instance((objects == one) & (codes == code), labels[code]) for one, code in pairs]

    def digest(self) -> str:
        """Of the files' bytes and the meaning of their codes."""
        classes = sorted([str(code), label] for code, label in self.classes.items())
        return digest_json([[sha256_file(file) for file in self.files], classes, self.is_partial])

    def _objects(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """(H, W) number of each pixel's object; 0 for none."""
        if self.object_map is None:
            return np.ones(shape, dtype=np.int32)
        objects, is_coloured = _read(self.object_map, False)
        if objects.shape != shape:
            raise DataError(
                f"{self.object_map}: {objects.shape[1]}x{objects.shape[0]} pixels, the map of classes"
                f" {shape[1]}x{shape[0]}",
                hint="both maps of an image must have its size",
            )
        objects[objects == _packed(_VOID, is_coloured=is_coloured)] = 0
        return objects


def _read(path: Path, is_coloured: bool) -> tuple[NDArray[np.int32], bool]:
    """The values of a map, and whether they are colours."""
    is_coloured = is_coloured or image_info(path).mode in ("RGB", "RGBA")
    return load_codes(path, is_coloured=is_coloured), is_coloured


def _packed(code: Code, *, is_coloured: bool) -> int:
    """A code as ``load_codes`` gives it."""
    if isinstance(code, int):
        if not is_coloured:
            return code
        code = _palette(code)
    return code[0] << 16 | code[1] << 8 | code[2]


def _shown(code: int, is_coloured: bool) -> str:
    return f"{code >> 16},{code >> 8 & 255},{code & 255}" if is_coloured else str(code)


def _palette(index: int) -> tuple[int, int, int]:
    """An index's colour in VOC's files (VOCcode/VOClabelcolormap.m): its bits, three by three, from the highest on."""
    red, green, blue = (sum((index >> 3 * at + channel & 1) << 7 - at for at in range(8)) for channel in range(3))
    return red, green, blue


def _files(root: Path, folder: str) -> dict[PurePosixPath, Path]:
    """Image files of a folder by their path in it without suffix; none where it is not there."""
    if not (root / folder).is_dir():
        return {}
    paths = ImageIndex(root / folder).paths()
    return {path.with_suffix(""): safe_file(root, root / folder / path) for path in paths}


def _listed(root: Path, annotated: Collection[PurePosixPath]) -> list[tuple[PurePosixPath, str | None]]:
    """(name, split) of each image in the lists, ``train``, ``val`` and ``test`` first."""
    lists: dict[str, list[PurePosixPath]] = {}
    for path in sorted(filter(Path.is_file, (root / "ImageSets" / "Segmentation").glob("*.txt"))):
        lines = enumerate(read_text(path, root).splitlines(), 1)
        names = [plain_path(Value(path, line.strip(), f"line {at}")) for at, line in lines if line.strip()]
        if any(name in annotated for name in names):
            lists[path.stem] = names
    order = sorted(lists, key=lambda name: (_LISTS.index(name) if name in _LISTS else len(_LISTS), name))
    splits = {name: split_word(name) for name in order}
    if "trainval" in lists and "test" in lists:
        splits["trainval"] = "train"
    return [(name, splits[one]) for one in order for name in lists[one]]


def _classes(root: Path) -> Mapping[Code, str]:
    """Code to class, empty for what is no object: of the list of names that is there, else VOC's."""
    path = root / "labelmap.txt"
    if path.is_file():
        return dict(_labelmap(path, root))
    path = root / "class_names.txt"
    if path.is_file():
        names = [line.strip() for line in read_text(path, root).splitlines() if line.strip()]
        return {at: _object(name) for at, name in enumerate(name for name in names if name != "__ignore__")}
    return dict(enumerate(VOC_CLASSES, 1))


def _labelmap(path: Path, root: Path) -> Iterator[tuple[Code, str]]:
    """``name:red,green,blue:parts:actions`` a line; without a colour it is the palette's, by line."""
    lines = [line.strip() for line in read_text(path, root).splitlines()]
    for at, line in enumerate(line for line in lines if line and not line.startswith("#")):
        name, _, rest = line.partition(":")
        colour = rest.partition(":")[0]
        try:
            red, green, blue = map(int, colour.split(",")) if colour else _palette(at)
        except ValueError:
            raise Value(path, line, f"class {at}").wrong("name:red,green,blue:parts:actions") from None
        yield (red, green, blue), _object(name.strip())


def _object(name: str) -> str:
    return "" if name.lower() in _NO_OBJECT else name
