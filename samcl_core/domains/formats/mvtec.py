"""MVTec AD: one category of industrial pictures, good ones and ones with a defect."""

from __future__ import annotations

from pathlib import Path

from samcl_core.domains.annotations import MaskFiles
from samcl_core.domains.formats.base import ReadOptions, SourceImage
from samcl_core.domains.formats.pairing import folders_inside, images_below, pair_trees, sorted_by_path
from samcl_core.errors import LayoutError

__all__ = ["MvtecFormat"]

_GOOD = "good"
_PARTS = ("train", "validation", "test")
_MAX_SHOWN = 5


class MvtecFormat:
    """``train/good``, ``test/good``, ``test/<defect>`` and ``ground_truth/<defect>``, of one category.

    A mask is called ``<stem>_mask.png``; or there are several in a folder called like the image (MVTec LOCO AD). The
    defect is the objects' class. Good images are negatives. The benchmark has no defect in ``train`` to learn from,
    so that its own split is not used.
    """

    name = "mvtec"
    described_at = "https://www.mvtec.com/company/research/datasets/mvtec-ad (Bergmann et al., CVPR 2019)"
    summary = "train/good, test/<defect> and ground_truth/<defect>/*_mask.png (one category of MVTec AD)"

    def matches(self, root: Path) -> bool:
        """Is it a category, or a folder of categories?"""
        return _is_category(root) or bool(_categories(root))

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        """Every image and mask.

        Raises:
            LayoutError: not a category; several of them.
        """
        if not _is_category(root):
            raise _no_category(root, [path.name for path in _categories(root)])
        found: list[SourceImage] = []
        truth = {path.name: path for path in folders_inside(root / "ground_truth")}
        for folder in (folder for part in _PARTS for folder in folders_inside(root / part)):
            if folder.name == _GOOD:
                found += [SourceImage(image, None, is_negative=True) for image in images_below(folder)]
            elif folder.parent.name == "test":
                found += _defect(folder, truth.pop(folder.name, root / "ground_truth" / folder.name))
            else:
                found += [SourceImage(image, None) for image in images_below(folder)]
        for name, masks in truth.items():
            found += _defect(root / "test" / name, masks)
        return sorted_by_path(found)


def _defect(images: Path, masks: Path) -> list[SourceImage]:
    label = images.name
    return pair_trees(images, masks, annotate=lambda paths: MaskFiles(paths, (label,) * len(paths)))


def _is_category(folder: Path) -> bool:
    has_good = any((folder / part / _GOOD).is_dir() for part in _PARTS)
    return has_good and (folder / "ground_truth").is_dir()


def _categories(root: Path) -> list[Path]:
    return [folder for folder in folders_inside(root) if _is_category(folder)]


def _no_category(root: Path, categories: list[str]) -> LayoutError:
    if not categories:
        return LayoutError(f"{root}: expected {MvtecFormat.summary}", hint="set the domain's format to auto")
    shown = ", ".join(categories[:_MAX_SHOWN]) + (", ..." if len(categories) > _MAX_SHOWN else "")
    return LayoutError(
        f"{root}: holds {len(categories)} categories of MVTec AD ({shown}), expected one: a category is a domain",
        hint=f"hand over one of them, such as {root / categories[0]}",
    )
