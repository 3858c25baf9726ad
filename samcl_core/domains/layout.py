"""A domain on disk: the published folders, read together with the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from samcl_core.domains.manifest import OK, read_manifest
from samcl_core.domains.points import Box, PointSet, read_boxes, read_points
from samcl_core.errors import LayoutError
from samcl_core.files import digest_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BOXES_FILE", "POINTS_FILE", "SPLITS", "Domain", "Sample"]

SPLITS = ("train", "val", "test")
POINTS_FILE = "points.json"
BOXES_FILE = "boxes.json"


@dataclass(frozen=True)
class Sample:
    """One image with one mask and its prompts.

    Attributes:
        id: the image's path inside the domain, ``train/images/x.jpg``.
        image: the image file.
        mask: the mask file, 0 and 255.
        image_sha256: of the image file.
        mask_sha256: of the mask file.
        width: of the upright image in pixels.
        height: of the upright image in pixels.
        points: (x, y) in the 1024 x 1024 frame.
        labels: 1 foreground, 0 background; as many as points.
        box: x0, y0, x1, y1 in the 1024 x 1024 frame, where boxes were asked for.
    """

    id: str
    image: Path
    mask: Path
    image_sha256: str
    mask_sha256: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box: Box | None = None


class Domain:
    """An ingested domain.

    Attributes:
        root: its folder, ``data/<name>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.name

    def manifest(self) -> pd.DataFrame:
        """All rows of ``manifest.parquet``, quarantined ones included (see ``manifest.Record``).

        Raises:
            LayoutError: the domain was not ingested.
        """
        return self._manifest.copy()

    def samples(self, split: str) -> list[Sample]:
        """The good samples of a split, sorted by id.

        Raises:
            LayoutError: a file is missing: the manifest, ``points.json``, an image, a mask or a mask's points.
            DataError: ``manifest.parquet`` or ``points.json`` cannot be read.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {SPLITS}")
        rows = self._manifest
        rows = rows[(rows["status"] == OK) & (rows["split"] == split)].sort_values("id")
        if not len(rows):
            return []
        folder = self.root / split / "masks"
        points = read_points(self._existing(folder / POINTS_FILE))
        boxes = read_boxes(folder / BOXES_FILE) if (folder / BOXES_FILE).is_file() else {}
        return [self._sample(row, points, boxes) for row in rows.itertuples(index=False)]

    def data_digest(self, splits: Sequence[str] = SPLITS) -> str:
        """sha256 over everything a result can depend on: ids, image and mask digests, points, labels and boxes.

        It does not depend on where the domain is. It trusts the digests of the manifest. A validation split that is
        empty is no part of it.
        """
        content = {
            split: [
                [sample.id, sample.image_sha256, sample.mask_sha256, sample.points, sample.labels, sample.box]
                for sample in samples
            ]
            for split in splits
            if (samples := self.samples(split)) or split != "val"
        }
        return digest_json(content)

    @cached_property
    def _manifest(self) -> pd.DataFrame:
        return read_manifest(self._existing(self.root / "manifest.parquet", "ingest"))

    def _existing(self, path: Path, stage: str = "points") -> Path:
        if not path.is_file():
            raise LayoutError(f"{path} is missing", hint=f"dvc checkout, or dvc repro {stage}@{self.name}")
        return path

    def _sample(self, row: object, points: dict[str, PointSet], boxes: dict[str, Box]) -> Sample:
        values = {name: getattr(row, name) for name in ("id", "image_sha256", "mask_sha256", "width", "height")}
        image = self._existing(self.root / row.image, "ingest")  # type: ignore[attr-defined]
        mask = self._existing(self.root / row.mask)  # type: ignore[attr-defined]
        if mask.name not in points:
            raise LayoutError(
                f"{mask.parent / POINTS_FILE} has no points for {mask.name}", hint=f"dvc repro points@{self.name}"
            )
        places, labels = points[mask.name]
        box = boxes.get(mask.name)
        return Sample(**values, image=image, mask=mask, points=places, labels=labels, box=box)
