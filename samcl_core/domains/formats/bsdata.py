"""BSData: pitting on ball screw drives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.labelme import LabelmeFormat
from samcl_core.domains.formats.reading import read_json
from samcl_core.errors import LayoutError

__all__ = ["BsdataFormat"]

_TABLE = "image_data.json"
_NAME = re.compile(r"\d+_\d+_(?P<place>\d+_\d+)_crop_(?P<kind>\d)")
_WITHOUT_DEFECT = "2"


@dataclass(frozen=True)
class _Row:
    """What ``image_data.json`` says about an image."""

    split: str | None
    is_annotated: bool


class BsdataFormat:
    """``data/`` with all images and ``label/`` with LabelMe JSON of those that are annotated.

    Of the others, names that end in ``_crop_2`` say that there is no defect: negatives. The rest has one that nobody
    drew; what ``image_data.json`` lists as not annotated is left out. The split is the one of ``image_data.json``;
    without it, pictures of one place of the screw over time (``.._277500_315_crop_..``) are one group. The published
    split tears these places apart.
    """

    name = "bsdata"
    described_at = "https://github.com/2Obe/BSData (Schlagenhauf and Landwehr, Data in Brief, 2021, arXiv 2103.13003)"
    summary = "data/*.jpg and label/*.json (BSData)"

    def matches(self, root: Path) -> bool:
        """Are there images in ``data`` and JSON files in ``label``, of the names of BSData?"""
        if not ((root / "data").is_dir() and (root / "label").is_dir()):
            return False
        return any(path.suffix == ".json" and _NAME.fullmatch(path.stem) for path in (root / "label").iterdir())

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image but those that are listed as not annotated, and every label.

        Raises:
            LayoutError: no labels.
            DataError: ``image_data.json`` cannot be understood, or two labels are of one image.
            UnsafeFileError: an image's path leads out of ``root``.
        """
        if not ((root / "data").is_dir() and (root / "label").is_dir()):
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        table = _table(root) if (root / _TABLE).is_file() else None
        found = [_described(image, table) for image in LabelmeFormat().scan(root, options)]
        return [image for image in found if image is not None]


def _described(image: SourceImage, table: Mapping[str, _Row] | None) -> SourceImage | None:
    """The image as its name and the table describe it; ``None`` where its defect is not drawn."""
    name = _NAME.fullmatch(image.path.stem)
    row = (table or {}).get(image.path.name)
    if image.annotation is None:
        image = replace(image, is_negative=name is not None and name["kind"] == _WITHOUT_DEFECT)
        if row is not None and not row.is_annotated and not image.is_negative:
            return None
    if table is None:
        return replace(image, group=name["place"] if name else "")
    return replace(image, split=row.split if row else None)


def _table(root: Path) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for entry in read_json(root / _TABLE, root)["images"].items():
        split = entry.get("train_test_split")
        if split is not None and split.text() not in ("train", "test"):
            raise split.wrong("train, test or null")
        rows[entry["filename"].text()] = _Row(split.text() if split else None, entry.get("annotations") is not None)
    return rows
