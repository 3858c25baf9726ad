"""Plain folders of images and masks, in the arrangements that are usual."""

from __future__ import annotations

from pathlib import Path

from samcl_core.domains.formats.base import (
    ReadOptions,
    SourceImage,
    bare_stem,
    image_files,
    pair_files,
    source_points,
    split_of,
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
_PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg"})


class FoldersFormat:
    """A folder of images beside a folder of masks, or both kinds in one folder; with or without split folders.

    Understood are ``images/`` + ``masks/``, ``images/{train,test}/`` + ``masks/{train,test}/``,
    ``{train,test}/{images,masks}/``, and one folder (also ``{train,test}/``) that holds ``x.jpg`` + ``x_mask.png`` or
    ``x.jpg`` + ``x.png``. Folders may have other usual names (``Imgs``, ``GT``, ``val`` ...).
    """

    name = "folders"
    described_at = "docs/formats.md"
    summary = "images/ and masks/ (also per train/test), or x.jpg with x_mask.png in one folder"

    def matches(self, root: Path) -> bool:
        """Is any of the arrangements there?"""
        return bool(_folder_pairs(root)) or any(_split_mixed(folder)[1] for _, folder in _places(root))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: none of the arrangements is there.
            DataError: a ``points.json`` is not JSON.
        """
        pairs: list[SourceImage] = []
        for split, images, masks in _folder_pairs(root):
            pairs += pair_files(image_files(images), image_files(masks), split, source_points(masks))
        if not pairs:
            for split, folder in _places(root):
                pairs += pair_files(*_split_mixed(folder), split, source_points(folder))
        if not pairs:
            raise LayoutError(f"{root}: expected {self.summary}", hint="set the domain's format to auto")
        return pairs


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """Sub-folders that are splits, with the split each stands for."""
    folders = _folders(root)
    named = [(split_of(folder.name, [other.name for other in folders]), folder) for folder in folders]
    return [(split, folder) for split, folder in named if split is not None]


def _places(root: Path) -> list[tuple[str | None, Path]]:
    """The split folders, or the folder itself when there are none."""
    return [*_split_folders(root)] or [(None, root)]


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    """The sub-folder with the most usual of these names."""
    by_name = {folder.name.lower(): folder for folder in reversed(_folders(root))}
    return next((by_name[name] for name in names if name in by_name), None)


def _folder_pairs(root: Path) -> list[tuple[str | None, Path, Path]]:
    """(split, folder of images, folder of masks) of every pair of folders."""
    found: list[tuple[str | None, Path, Path]] = []
    for split, folder in [(None, root), *_split_folders(root)]:
        images, masks = _named(folder, _IMAGE_FOLDERS), _named(folder, _MASK_FOLDERS)
        if images is None or masks is None:
            continue
        inner = [(name, sub, masks / sub.name) for name, sub in _split_folders(images) if (masks / sub.name).is_dir()]
        found += inner if inner and split is None else [(split, images, masks)]
    return found


def _split_mixed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and masks of a folder that holds both; no masks when it does not look like one."""
    files = image_files(folder)
    masks = [file for file in files if bare_stem(file.name) != file.stem]
    if not masks:
        photos = {file.stem for file in files if file.suffix.lower() in _PHOTO_SUFFIXES}
        masks = [file for file in files if file.suffix.lower() == ".png" and file.stem in photos]
    return [file for file in files if file not in set(masks)], masks
