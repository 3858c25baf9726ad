"""ISTD: pictures of shadows as triplets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.pairing import pair_trees, sorted_by_path
from samcl_core.errors import LayoutError

__all__ = ["IstdFormat"]

_SCENE = re.compile(r"(\d+)-\d+")


class IstdFormat:
    """``train/train_A`` holds the images, ``train/train_B`` their shadow masks; ``test`` likewise.

    ``train_C``, the same pictures without shadows, is not read. Images ``<scene>-<number>.png`` of a scene are one
    group.
    """

    name = "istd"
    described_at = "https://github.com/DeepInsight-PCALab/ST-CGAN (Wang, Li and Yang, CVPR 2018)"
    summary = "train/train_A (images) and train/train_B (masks), test likewise (ISTD)"

    def matches(self, root: Path) -> bool:
        """Is there a split with both?"""
        return bool(_splits(root))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: no split has both folders.
        """
        splits = _splits(root)
        if not splits:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        found: list[SourceImage] = []
        for split, folder in splits.items():
            pairs = pair_trees(folder / f"{split}_A", folder / f"{split}_B", split)
            found += [replace(pair, group=_group(pair)) for pair in pairs]
        return sorted_by_path(found)


def _splits(root: Path) -> dict[str, Path]:
    """Split to the folder that holds its parts: one of the split's name, or ``root``."""
    places = [(split, folder) for split in ("train", "test") for folder in (root, root / split)]
    return {
        split: folder for split, folder in places if all((folder / f"{split}_{part}").is_dir() for part in ("A", "B"))
    }


def _group(pair: SourceImage) -> str:
    """Scenes are counted by split: those of train and test are different ones, whatever their numbers."""
    scene = _SCENE.fullmatch(pair.path.stem)
    return f"{pair.split}/{scene[1]}" if scene else ""
