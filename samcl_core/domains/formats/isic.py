"""ISIC challenges 2016 to 2018, task 1: borders of skin lesions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage, split_of
from samcl_core.domains.formats.pairing import folders_inside, images_below, pair_names, sorted_by_path
from samcl_core.errors import LayoutError

__all__ = ["IsicFormat"]

_NAME = re.compile(
    r"(?:ISIC|ISBI)[ _-]?(?P<year>\d{4}).*?_(?P<split>training|validation|test)_(?P<rest>.*)", re.IGNORECASE
)
_TASK = re.compile(r"(?:task|part)(\d)(b?)", re.IGNORECASE)


@dataclass(frozen=True)
class _Part:
    """A folder of the challenge.

    Attributes:
        year: of the challenge.
        split: ``train``, ``val`` or ``test``.
        has_masks: ground truth, else images.
        folder: where its files are.
    """

    year: str
    split: str
    has_masks: bool
    folder: Path


class IsicFormat:
    """``ISIC2018_Task1-2_Training_Input`` + ``ISIC2018_Task1_Training_GroundTruth``, and the like for Validation and
    Test; ``ISIC-2017_Training_Data`` + ``ISIC-2017_Training_Part1_GroundTruth``; ``ISBI2016_ISIC_Part1_Training_Data``
    + ``ISBI2016_ISIC_Part1_Training_GroundTruth``. They may lie in folders of their own (``train/``, ``test/``).

    A mask is called ``<image>_segmentation.png``. Not read: ground truth of the other tasks and ``_superpixels.png``.
    """

    name = "isic"
    described_at = "https://challenge.isic-archive.com/data/ and https://challenge.isic-archive.com/landing/2018/"
    summary = "ISIC*_Input (or _Data) and ISIC*_GroundTruth folders with *_segmentation.png (ISIC 2016-2018, task 1)"

    def matches(self, root: Path) -> bool:
        """Are there folders of images and of ground truth?"""
        return {part.has_masks for part in _parts(root)} == {True, False}

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: no such folders.
        """
        parts = _parts(root)
        if {part.has_masks for part in parts} != {True, False}:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        found: list[SourceImage] = []
        splits = sorted({part.split for part in parts})
        for year, split in sorted({(part.year, part.split) for part in parts}):
            here = [part for part in parts if (part.year, part.split) == (year, split)]
            images, masks = (_files([part for part in here if part.has_masks is kind]) for kind in (False, True))
            found += pair_names(images, masks, split_of(split, splits))
        return sorted_by_path(found)


def _parts(root: Path) -> list[_Part]:
    """The folders of task 1, in ``root`` and in its sub-folders."""
    folders = folders_inside(root)
    inner = [path for folder in folders for path in folders_inside(folder)]
    parts = [part for folder in folders if (part := _part(folder))]
    return parts or [part for folder in inner if (part := _part(folder))]


def _part(folder: Path) -> _Part | None:
    name = _NAME.fullmatch(folder.name)
    if name is None:
        return None
    rest = name["rest"].lower()
    task = _TASK.search(folder.name)
    # Images of 2017 are those of all tasks and name none; "Part3B" of 2016 is another task, too.
    is_other_task = task is not None and (task[1] != "1" or task[2] != "")
    has_masks = "groundtruth" in rest
    is_known = has_masks or rest.endswith(("input", "data"))
    if is_other_task or not is_known or (has_masks and task is None):
        return None
    split = {"training": "train", "validation": "val", "test": "test"}[name["split"].lower()]
    return _Part(name["year"], split, has_masks, folder)


def _files(parts: Sequence[_Part]) -> list[Path]:
    files = [path for part in parts for path in images_below(part.folder)]
    return [path for path in files if not path.stem.lower().endswith("_superpixels")]
