"""RSDDs: defects of rail surfaces."""

from __future__ import annotations

import re
from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.pairing import folders_inside, pair_trees, sorted_by_path
from samcl_core.errors import LayoutError

__all__ = ["RsddsFormat"]

_IMAGES, _MASKS = "railsurfaceimages", "groundtruth"


class RsddsFormat:
    """``Type-I RSDDs dataset`` and ``Type-II RSDDs dataset``, each with ``Rail surface images`` and ``GroundTruth``.

    Files of both folders have the same names (JPEG both). One of the two types can be given alone. ``_`` or nothing in
    place of the blanks in folder names makes no difference.
    """

    name = "rsdds"
    described_at = (
        "http://icn.bjtu.edu.cn/Visint/resources/RSDDs.aspx (Gan et al., A Hierarchical Extractor-Based Visual Rail"
        " Surface Inspection System, IEEE Sensors Journal 17, 2017)"
    )
    summary = "Rail surface images and GroundTruth, in Type-I/Type-II folders or directly (RSDDs)"

    def matches(self, root: Path) -> bool:
        """Are the two folders there?"""
        return bool(_types(root))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: the two folders are not there.
        """
        types = _types(root)
        if not types:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return sorted_by_path([pair for images, masks in types for pair in pair_trees(images, masks)])


def _types(root: Path) -> list[tuple[Path, Path]]:
    """Images and masks of each type."""
    found = []
    for folder in (root, *folders_inside(root)):
        named = {re.sub(r"[^a-z]", "", path.name.lower()): path for path in folders_inside(folder)}
        if _IMAGES in named and _MASKS in named:
            found.append((named[_IMAGES], named[_MASKS]))
    return found
