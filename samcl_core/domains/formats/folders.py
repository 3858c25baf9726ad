"""Plain folders of images and masks, in the arrangements that are usual."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from samcl_core.domains.formats.base import ReadOptions, SourceImage, bare_stem, image_files, split_of
from samcl_core.domains.formats.labelmaps import annotator
from samcl_core.domains.formats.pairing import (
    folders_below,
    folders_inside,
    is_mask_name,
    pair_names,
    pair_trees,
    sorted_by_path,
)
from samcl_core.errors import LayoutError

__all__ = ["FoldersFormat"]

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
_MASK_FOLDERS = (
    "masks",
    "mask",
    "gt",
    "gts",
    "groundtruth",
    "ground_truth",
    "segmentations",
    "segmentation",
    "annotations",
    "labels",
    "label",
)
_BESIDE = re.compile(r"[ _-]?(?:annot|annotations|gt|labels?|masks?|segmentations?)", re.I)
_PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg"})

Place = tuple[str | None, Path, Path]
"""Split, folder of images, folder of masks."""


class FoldersFormat:
    """A folder of images beside a folder of masks, or both kinds in one folder; with or without split folders.

    Understood are ``images/`` + ``masks/``, ``images/{train,test}/`` + ``masks/{train,test}/``,
    ``{train,test}/{images,masks}/``, ``train/`` + ``train_labels/``, and folders that hold ``x.jpg`` + ``x_mask.png``
    (at any depth) or ``x.jpg`` + ``x.png``. Folders may have other usual names (``Imgs``, ``GT``, ``val`` ...), and
    sub-folders of any depth that both trees share. An image may have several masks, one for each object:
    ``x_mask_1.png``, ``x_mask_2.png`` or ``masks/x/0.png``, ``masks/x/1.png``.

    Masks are black and white, unless the user gives ``codes`` or a label map lies beside the folders
    (``labelmaps.LABEL_MAPS``): then their values or colours are classes.
    """

    name = "folders"
    described_at = "docs/formats.md"
    reads_codes = True
    summary = "images/ and masks/ (also per train/test), or x.jpg with x_mask.png in one folder"

    def matches(self, root: Path) -> bool:
        """Is any of the arrangements there?"""
        return bool(_places(root)) or _is_mixed(root)

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: none of the arrangements is there.
            DataError: a ``points.json`` or label map cannot be understood.
        """
        annotate = annotator(root, options)
        found: list[SourceImage] = []
        for split, images, masks in _places(root):
            pairs = pair_trees(images, masks, split, annotate)
            found += pairs if split else _with_splits(pairs, images, masks)
        if not found and _is_mixed(root):
            for split, folder in _splits(root):
                for inner in folders_below(folder):
                    found += pair_names(*_split_mixed(inner), split, annotate)
        if not found:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return sorted_by_path(found)


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """Sub-folders that are splits, with the split each stands for."""
    folders = folders_inside(root)
    named = [(split_of(folder.name, [other.name for other in folders]), folder) for folder in folders]
    return [(split, folder) for split, folder in named if split is not None]


def _splits(root: Path) -> list[tuple[str | None, Path]]:
    """The split folders, or the folder itself when there are none."""
    return [*_split_folders(root)] or [(None, root)]


def _named(root: Path, names: tuple[str, ...]) -> list[Path]:
    """The sub-folders that have one of these names, most usual name first."""
    by_name = {folder.name.lower(): folder for folder in reversed(folders_inside(root))}
    return [by_name[name] for name in names if name in by_name]


def _places(root: Path) -> list[Place]:
    """Every pair of a folder of images and a folder of masks."""
    found: list[Place] = []
    splits = _split_folders(root)
    for split, folder in [(None, root), *splits]:
        images, masks = _named(folder, _IMAGE_FOLDERS), _mask_folder(folder)
        if images and masks is not None:
            found.append((split, images[0], masks))
    for split, folder in splits:
        beside = [other for other in folders_inside(root) if _is_beside(folder, other)]
        if len(beside) == 1 and image_files(folder):
            found.append((split, folder, beside[0]))
    return found


def _mask_folder(folder: Path) -> Path | None:
    """The folder of masks: the one that holds images (labels may be text), else one that is empty."""
    named = _named(folder, _MASK_FOLDERS)
    holding = [masks for masks in named if any(map(image_files, folders_below(masks)))]
    return next(iter(holding or [masks for masks in named if not any(masks.iterdir())]), None)


def _is_beside(folder: Path, other: Path) -> bool:
    """``train_labels`` (or ``trainannot``) is beside ``train``."""
    name = other.name.lower()
    return name.startswith(folder.name.lower()) and _BESIDE.fullmatch(name[len(folder.name) :]) is not None


def _with_splits(entries: list[SourceImage], images: Path, masks: Path) -> list[SourceImage]:
    """``images/train/x.jpg`` is of the split train."""
    splits = {folder.name.lower(): split for split, folder in _split_folders(images)}
    if not splits:
        return entries
    split_in = cache(
        lambda folder, root: splits.get(folder.relative_to(root).parts[0].lower()) if folder != root else None
    )
    roots = [masks if entry.image is None else images for entry in entries]
    return [replace(entry, split=split_in(entry.path.parent, at)) for entry, at in zip(entries, roots, strict=True)]


def _is_mixed(root: Path) -> bool:
    """Do images and masks lie in one folder? Further down, only masks that call themselves so count."""
    return any(_split_mixed(folder)[1] or any(map(_holds_pairs, folders_below(folder))) for _, folder in _splits(root))


def _holds_pairs(folder: Path) -> bool:
    names = [file.name for file in image_files(folder)]
    images = {Path(name).stem for name in names if not is_mask_name(name)}
    return any(bare_stem(name) in images for name in names if is_mask_name(name))


def _split_mixed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and masks of a folder that holds both; no masks when it does not look like one."""
    files = image_files(folder)
    masks = [file for file in files if is_mask_name(file.name)]
    if not masks:
        photos = {file.stem for file in files if file.suffix.lower() in _PHOTO_SUFFIXES}
        masks = [file for file in files if file.suffix.lower() == ".png" and file.stem in photos]
    chosen = set(masks)
    return [file for file in files if file not in chosen], masks
