"""The published layout: ``{train,test}/{images,masks}``, ``masks/points.json``."""

from __future__ import annotations

from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage, image_files, pair_files, source_points, split_of
from samcl_core.domains.layout import SPLITS
from samcl_core.errors import LayoutError

__all__ = ["SamclFormat"]


class SamclFormat:
    """The layout of the published scripts. Without a ``test`` folder, the test split is made from ``train``."""

    name = "samcl"
    described_at = "the published SAMCL scripts read it"
    summary = "{train,test}/images and {train,test}/masks, optionally masks/points.json"

    def matches(self, root: Path) -> bool:
        """Are there no splits but ``train`` and ``test``, and ``images`` and ``masks`` in at least one?"""
        splits = [path.name for path in root.iterdir() if path.is_dir() and split_of(path.name, ())]
        return set(splits) <= set(SPLITS) and any(
            (root / name / "images").is_dir() and (root / name / "masks").is_dir() for name in splits
        )

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: neither split has its folders.
            DataError: a ``points.json`` is not JSON.
        """
        pairs: list[SourceImage] = []
        splits = [split for split in SPLITS if (root / split / "images").is_dir()]
        if not splits:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        for split in splits:
            masks = root / split / "masks"
            found = image_files(masks) if masks.is_dir() else []
            pairs += pair_files(image_files(root / split / "images"), found, split, source_points(masks))
        return pairs
