"""COD10K-v3 as its read-me describes it (http://dpfan.net/Camouflage/), CAMO-COCO v1.0 as it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.domains.annotations import union_of
from samcl_core.domains.formats import detect_format
from samcl_core.domains.formats.cod10k import InstanceMap
from samcl_core.errors import DataError


def test_cod10k(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("cod10k", sample("cod10k"))
    fish = [("ClownFish", 8), ("ClownFish", 16)]  # (0, 128, 0) comes before (128, 0, 0)
    assert found.rows == {
        "Train/Image/COD10K-CAM-1-Aquatic-2-ClownFish-1.jpg": ("train", fish),
        "Train/Image/COD10K-NonCAM-4-Amphibian-68-Toad-1.jpg": ("train", []),
        "Test/Image/COD10K-CAM-1-Aquatic-2-ClownFish-2.jpg": ("test", fish),
        "Test/Image/COD10K-NonCAM-4-Amphibian-68-Toad-2.jpg": ("test", []),
    }
    assert found.negatives == {name for name in found.rows if "NonCAM" in name}
    assert (found.pixels, found.unpaired) == (48, set())


def test_camo(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("cod10k", sample("camo"))
    assert found.rows == {
        "Camouflage/Images/Train/camourflage_00001.jpg": ("train", [("", 25)]),
        "Camouflage/Images/Test/camourflage_00012.jpg": ("test", [("", 25)]),
        "Non-Camouflage/Images/Train/coco_1.jpg": ("train", [("", 0)]),
        "Non-Camouflage/Images/Test/coco_2.jpg": ("test", [("", 0)]),
    }
    assert found.negatives == {"Non-Camouflage/Images/Train/coco_1.jpg", "Non-Camouflage/Images/Test/coco_2.jpg"}
    assert (found.pixels, found.unpaired) == (50, set())


def test_the_collections_of_the_benchmark(tree, scan: Callable) -> None:
    name = "COD10K-CAM-3-Flying-53-Bird-7"
    tree.pairs("TrainDataset/Imgs/{}.jpg", "TrainDataset/GT/{}.png", {name: [(0, 0, 2, 2)]})
    tree.codes(f"TrainDataset/Instance/{name}.png", ((0, 0, 1, 2), 1))
    tree.pairs("TestDataset/CAMO/Imgs/{}.jpg", "TestDataset/CAMO/GT/{}.png", {"camourflage_00012": [(0, 0, 3, 3)]})
    assert detect_format(tree.root).name == "cod10k"
    assert scan("cod10k", tree.root).rows == {
        f"TrainDataset/Imgs/{name}.jpg": ("train", [("Bird", 2), ("Bird", 2)]),
        "TestDataset/CAMO/Imgs/camourflage_00012.jpg": ("test", [("", 9)]),
    }


def test_missing_partners_and_odd_names(tree, scan: Callable) -> None:
    tree.pairs("Train/Image/{}.JPG", "Train/GT/{}.png", {"é 1.x": [(0, 0, 2, 2)]})
    tree.image("Train/Image/COD10K-CAM-1-Aquatic-2-ClownFish-1.jpg", "Train/Image/COD10K-NonCAM-1-Aquatic-1-X-1.jpg")
    tree.mask("Train/GT/b.png")
    tree.mask("Train/Instance/é 1.x.png")
    found = scan("cod10k", tree.root)
    assert found.rows["Train/Image/é 1.x.JPG"] == ("train", [("", 4)])
    assert found.unpaired == {"Train/Image/COD10K-CAM-1-Aquatic-2-ClownFish-1.jpg", "-Train/GT/b.png"}


@pytest.mark.parametrize("palette", [None, [0, 0, 0, 128, 0, 0, 0, 128, 0]], ids=["grey", "indexed"])
def test_instances_of_a_map_unite_to_the_mask(tree, palette: list[int] | None) -> None:
    tree.mask("mask.png", (0, 0, 4, 4))
    tree.codes("map.png", ((0, 0, 2, 4), 1), ((2, 0, 1, 4), 2), ((10, 10, 2, 2), 1), palette=palette)
    annotation = InstanceMap(tree.root / "mask.png", tree.root / "map.png", "x")
    instances = annotation.instances((16, 12), 128)
    assert sorted(int(one.mask.sum()) for one in instances) == [4, 4, 8]
    assert instances[-1].mask[:4, 3].all()  # what the map leaves out comes last
    assert union_of(instances, (16, 12)).sum() == 16
    digest = annotation.digest()
    tree.codes("map.png", ((0, 0, 2, 4), 1))
    assert annotation.digest() != digest


def test_a_map_of_another_size_is_refused(tree) -> None:
    tree.mask("mask.png")
    tree.mask("map.png", size=(8, 8))
    with pytest.raises(DataError, match=r"map\.png: the map of objects is 8x8 pixels, the mask 16x12"):
        InstanceMap(tree.root / "mask.png", tree.root / "map.png").instances((16, 12), 128)
