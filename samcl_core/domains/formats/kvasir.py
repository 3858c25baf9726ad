"""Kvasir-SEG: polyps."""

from __future__ import annotations

from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.pairing import pair_trees, sorted_by_path
from samcl_core.errors import LayoutError

__all__ = ["KvasirFormat"]

_BOXES = ("kvasir_bboxes.json", "kavsir_bboxes.json")
"""As it is called, and as it was misspelt."""


class KvasirFormat:
    """``images/`` and ``masks/`` with the same names (JPEG both), and ``kvasir_bboxes.json``, which is not read."""

    name = "kvasir"
    described_at = "https://datasets.simula.no/kvasir-seg/ (Jha et al., MMM 2020, arXiv 1911.07069)"
    summary = "images/, masks/ and kvasir_bboxes.json (Kvasir-SEG)"

    def matches(self, root: Path) -> bool:
        """Are the three there?"""
        folders = (root / "images").is_dir() and (root / "masks").is_dir()
        return folders and any((root / name).is_file() for name in _BOXES)

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: a folder is missing.
        """
        if not ((root / "images").is_dir() and (root / "masks").is_dir()):
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return sorted_by_path(pair_trees(root / "images", root / "masks"))
