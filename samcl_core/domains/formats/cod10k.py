"""COD10K and CAMO: camouflaged objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from samcl_core.domains.annotations import Annotation, Instance, MaskFiles, refuse_too_many
from samcl_core.domains.formats.base import ReadOptions, SourceImage, image_files, split_of
from samcl_core.domains.formats.pairing import folders_inside, images_below, pair_trees, sorted_by_path
from samcl_core.domains.images import load_codes, load_mask
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import digest_json, sha256_file

__all__ = ["Cod10kFormat", "InstanceMap"]

_IMAGES = ("image", "images", "imgs")
_MASKS = ("gt_object", "gt")
_INSTANCES = ("gt_instance", "instance")
_FILE = re.compile(r"COD10K-(?:Non)?CAM-\d+-[^-]+-\d+-(?P<label>[^-]+)-\d+", re.IGNORECASE)
_KNOWN_FILE = re.compile(r"COD10K-|camour?flage?_", re.IGNORECASE)
_NEGATIVE = re.compile(r"COD10K-NonCAM-|non-?camouflaged?", re.IGNORECASE)
_SPLIT = re.compile(r"(train|test|val)(?:ing|idation)?(?:[ _-]?dataset)?", re.IGNORECASE)
_MAX_DEPTH = 3


@dataclass(frozen=True)
class InstanceMap:
    """A mask of all objects, and a map in which each object has a colour (or value) of its own; black is background.

    The union of the instances is exactly the mask: where the map has no object they get one instance more.

    Attributes:
        mask: the mask file.
        colours: the map.
        label: class of the objects.
    """

    mask: Path
    colours: Path
    label: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The mask, then the map."""
        return (self.mask, self.colours)

    @property
    def size(self) -> None:
        """The files say it."""
        return

    def instances(self, size: tuple[int, int], threshold: int) -> list[Instance]:
        """One for each colour in the mask.

        Raises:
            ImageError: a file cannot be read.
            DataError: the files have different sizes.
        """
        mask, colours = load_mask(self.mask, threshold), load_codes(self.colours, is_coloured=True)
        if mask.shape != colours.shape:
            raise DataError(
                f"{self.colours}: the map of objects is {colours.shape[1]}x{colours.shape[0]} pixels,"
                f" the mask {mask.shape[1]}x{mask.shape[0]}",
                hint="correct or remove this file",
            )
        inside = np.where(mask, colours, -1)
        found = sorted(int(colour) for colour in np.unique(inside) if colour >= 0)
        refuse_too_many(self.colours, len(found), inside.size)
        # Pixels of the mask that are black in the map come last.
        return [Instance(inside == colour, self.label) for colour in sorted(found, key=lambda colour: colour == 0)]

    def digest(self) -> str:
        """Of the bytes of both files, and the class."""
        return digest_json([sha256_file(self.mask), sha256_file(self.colours), self.label])


class Cod10kFormat:
    """``{Train,Test}/Image`` with ``GT_Object`` (or ``GT``) and ``GT_Instance`` (or ``Instance``): COD10K; ``Images/
    {Train,Test}`` with one ``GT`` for both: CAMO. The benchmarks' own collections, ``TrainDataset/{Imgs,GT}`` and
    ``TestDataset/COD10K/{Imgs,GT}``, are read, too.

    The class of an object is what COD10K's file names say (``COD10K-CAM-1-Aquatic-2-ClownFish-15``). ``COD10K-NonCAM``
    images and those in CAMO's ``Non-Camouflage`` are negatives. Edge maps are not read.
    """

    name = "cod10k"
    described_at = (
        "http://dpfan.net/Camouflage/ (Fan et al., CVPR 2020) for COD10K; Le et al., Anabranch Network for Camouflaged"
        " Object Segmentation, CVIU 2019, for CAMO"
    )
    summary = "{Train,Test}/Image + GT_Object (or GT + Instance), or Images/{Train,Test} + GT (COD10K, CAMO)"

    def matches(self, root: Path) -> bool:
        """Are the folders there, and an instance map or a file that is called as in these data sets?"""
        return any(map(_is_ours, _places(root)))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: the folders are not there.
        """
        found: list[SourceImage] = []
        split_in = cache(lambda folder: _split(root, folder))
        for place in _places(root):
            instances = {path.stem: path for path in images_below(place.instances)} if place.instances else {}
            for pair in pair_trees(place.images, place.masks):
                inside = pair.path.relative_to(root).as_posix()
                annotation = _annotation(pair.annotation, instances)
                is_negative = _NEGATIVE.search(inside) is not None
                split = split_in(pair.path.parent)
                found.append(replace(pair, annotation=annotation, split=split, is_negative=is_negative))
        if not found:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return sorted_by_path(found)


@dataclass(frozen=True)
class _Place:
    """Folders that belong together."""

    images: Path
    masks: Path
    instances: Path | None


def _places(root: Path, depth: int = 0) -> Iterator[_Place]:
    folders = {folder.name.lower(): folder for folder in folders_inside(root)}
    images = next((folders[name] for name in _IMAGES if name in folders), None)
    masks = next((folders[name] for name in _MASKS if name in folders), None)
    if images and masks:
        yield _Place(images, masks, next((folders[name] for name in _INSTANCES if name in folders), None))
    elif depth < _MAX_DEPTH:
        for folder in folders.values():
            yield from _places(folder, depth + 1)


def _is_ours(place: _Place) -> bool:
    if place.instances or place.masks.name.lower() == "gt_object":
        return True
    first = [files[0] for folder in (place.images, *folders_inside(place.images)) if (files := image_files(folder))]
    return any(_KNOWN_FILE.match(path.name) for path in first)


def _annotation(annotation: Annotation | None, instances: dict[str, Path]) -> Annotation | None:
    if annotation is None:
        return None
    masks = annotation.files
    name = _FILE.fullmatch(masks[0].stem)
    label = name["label"] if name else ""
    if len(masks) == 1 and masks[0].stem in instances:
        return InstanceMap(masks[0], instances[masks[0].stem], label)
    return MaskFiles(masks, (label,) * len(masks))


def _split(root: Path, folder: Path) -> str | None:
    """What a folder and those above it say; the outermost one counts."""
    above = [folder, *folder.parents]
    for inside in reversed(above[: above.index(root)]):
        siblings = [_split_word(other.name) for other in folders_inside(inside.parent)]
        if (split := split_of(_split_word(inside.name), siblings)) is not None:
            return split
    return None


def _split_word(name: str) -> str:
    """``TestDataset`` is ``test``."""
    found = _SPLIT.fullmatch(name)
    return found[1].lower() if found else name
