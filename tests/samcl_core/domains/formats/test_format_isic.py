"""ISIC challenges as https://challenge.isic-archive.com/data/ names their folders and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.domains.formats import detect_format


def test_2018(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("isic", sample("isic"))
    assert found.rows == {
        "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg": ("train", [("", 30)]),
        "ISIC2018_Task1-2_Training_Input/ISIC_0000001.jpg": ("train", [("", 30)]),
        "ISIC2018_Task1-2_Validation_Input/ISIC_0000002.jpg": ("val", [("", 30)]),
        "ISIC2018_Task1-2_Test_Input/ISIC_0000003.jpg": ("test", [("", 30)]),
    }
    assert (found.pixels, found.unpaired) == (120, set())


@pytest.mark.parametrize(
    ("images", "masks", "split"),
    [
        ("ISIC-2017_Training_Data/{}.jpg", "ISIC-2017_Training_Part1_GroundTruth/{}_segmentation.png", "train"),
        ("ISIC-2017_Test_v2_Data/{}.jpg", "ISIC-2017_Test_v2_Part1_GroundTruth/{}_segmentation.png", "test"),
        ("ISIC-2017_Validation_Data/{}.jpg", "ISIC-2017_Validation_Part1_GroundTruth/{}_segmentation.png", "test"),
        ("ISBI2016_ISIC_Part1_Test_Data/{}.jpg", "ISBI2016_ISIC_Part1_Test_GroundTruth/{}_Segmentation.png", "test"),
        ("test/ISIC-2017_Test_v2_Data/{}.JPG", "test/ISIC-2017_Test_v2_Part1_GroundTruth/{}_segmentation.png", "test"),
        (
            "ISIC2018_Task1-2_Training_Input/ISIC2018_Task1-2_Training_Input/{}.jpg",
            "ISIC2018_Task1_Training_GroundTruth/ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png",
            "train",
        ),
    ],
    ids=["2017", "2017 test", "validation without test", "2016", "in folders of splits", "folder in folder"],
)
def test_other_years(tree, scan: Callable, images: str, masks: str, split: str) -> None:
    name = "ISIC_0000000"
    tree.image(images.format(name), images.format(f"{name}_superpixels").replace(".jpg", ".png"))
    tree.mask(masks.format(name), (0, 0, 3, 3))
    assert detect_format(tree.root).name == "isic"
    assert scan("isic", tree.root).rows == {images.format(name): (split, [("", 9)])}


def test_images_of_another_year_are_not_confused(tree, scan: Callable) -> None:
    tree.image("ISIC-2017_Training_Data/ISIC_0000000.jpg")
    tree.mask("ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png", (0, 0, 1, 1))
    assert scan("isic", tree.root).unpaired == {
        "ISIC-2017_Training_Data/ISIC_0000000.jpg",
        "-ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png",
    }
