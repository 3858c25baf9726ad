"""The published layout: ``{train,test}/{images,masks}``, ``masks/points.json``."""

from __future__ import annotations

from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage, split_of
from samcl_core.domains.formats.labelmaps import annotator
from samcl_core.domains.formats.pairing import pair_trees, sorted_by_path
from samcl_core.domains.layout import SPLITS
from samcl_core.errors import LayoutError

__all__ = ["SamclFormat"]


class SamclFormat:
    """The layout of the published scripts. Without a ``test`` folder, the test split is made from ``train``.

    Several masks of an image and coded masks are read as in ``folders``.
    """

    name = "samcl"
    described_at = "the published SAMCL scripts read it"
    reads_codes = True
    summary = "{train,test}/images and {train,test}/masks (val likewise), optionally masks/points.json"

    def matches(self, root: Path) -> bool:
        """Are there no splits but ``train``, ``val`` and ``test``, and ``images`` and ``masks`` in at least one?"""
        splits = [path.name for path in root.iterdir() if path.is_dir() and split_of(path.name, ())]
        return set(splits) <= set(SPLITS) and any(
            (root / name / "images").is_dir() and (root / name / "masks").is_dir() for name in splits
        )

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: neither split has its folders.
            DataError: a ``points.json`` or label map cannot be understood.
        """
        splits = [split for split in SPLITS if (root / split / "images").is_dir()]
        if not splits:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        annotate = annotator(root, options)
        places = [(root / split / "images", root / split / "masks", split_of(split, splits)) for split in splits]
        return sorted_by_path([pair for place in places for pair in pair_trees(*place, annotate)])
