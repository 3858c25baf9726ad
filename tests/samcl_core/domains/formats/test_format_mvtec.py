"""MVTec AD as https://www.mvtec.com/company/research/datasets/mvtec-ad describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.domains.formats import ReadOptions, detect_format, get_format
from samcl_core.errors import LayoutError


def test_a_category(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("mvtec", sample("mvtec"))
    assert found.rows == {
        "train/good/000.png": (None, []),
        "train/good/001.png": (None, []),
        "test/good/000.png": (None, []),
        "test/scratch/000.png": (None, [("scratch", 8)]),
        "test/scratch/001.png": (None, [("scratch", 9)]),
        "test/bent wire/a.b ü.PNG": (None, [("bent wire", 10)]),
    }
    assert found.negatives == {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
    assert found.unpaired == set()
    assert found.pixels == 27


def test_several_masks_in_a_folder_of_the_image(tree, scan: Callable) -> None:
    tree.image("train/good/000.png", "validation/good/000.png", "test/logical/000.png")
    tree.mask("ground_truth/logical/000/000.png", (0, 0, 2, 2))
    tree.mask("ground_truth/logical/000/001.png", (4, 4, 3, 1))
    found = scan("mvtec", tree.root)
    assert found.rows["test/logical/000.png"] == (None, [("logical", 4), ("logical", 3)])
    assert found.negatives == {"train/good/000.png", "validation/good/000.png"}


def test_partners_that_are_missing_are_reported(sample: Callable[[str], Path], tree, scan: Callable) -> None:
    sample("mvtec")
    tree.image("test/scratch/002.png", "test/hole/000.png", "train/hole/000.png")
    tree.mask("ground_truth/scratch/003_mask.png", (0, 0, 1, 1))
    tree.mask("ground_truth/dent/000_mask.png", (0, 0, 1, 1))
    assert scan("mvtec", tree.root).unpaired == {
        "test/scratch/002.png",
        "test/hole/000.png",
        "train/hole/000.png",
        "-ground_truth/scratch/003_mask.png",
        "-ground_truth/dent/000_mask.png",
    }


def test_a_folder_of_categories_is_refused_by_name(tree) -> None:
    for name in ("bottle", "cable"):
        tree.image(f"{name}/train/good/000.png", f"{name}/test/good/000.png")
        tree.mask(f"{name}/ground_truth/hole/000_mask.png")
    found = detect_format(tree.root)
    with pytest.raises(LayoutError, match=r"2 categories of MVTec AD \(bottle, cable\), expected one") as caught:
        found.scan(tree.root, ReadOptions())
    assert f"hand over one of them, such as {tree.root / 'bottle'}" in str(caught.value)
    assert get_format("mvtec").matches(tree.root / "bottle")
