"""ISTD as https://github.com/DeepInsight-PCALab/ST-CGAN publishes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def test_triplets(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("istd", sample("istd"))
    assert found.rows == {
        "train/train_A/1-1.png": ("train", [("", 16)]),
        "train/train_A/1-2.png": ("train", [("", 16)]),
        "train/train_A/2-1.png": ("train", [("", 16)]),
        "test/test_A/91-1.png": ("test", [("", 16)]),
    }
    assert (found.pixels, found.unpaired) == (64, set())
    assert [entry.group for entry in found.entries] == ["test/91", "train/1", "train/1", "train/2"]


def test_odd_names_and_missing_partners(tree, scan: Callable) -> None:
    tree.image("train_A/scène 1.b.PNG", "train_A/x.png", "train_C/y.png")
    tree.mask("train_B/scène 1.b.png", (0, 0, 2, 2))
    tree.mask("train_B/y.png", (0, 0, 2, 2))
    found = scan("istd", tree.root)
    assert found.rows["train_A/scène 1.b.PNG"] == ("train", [("", 4)])
    assert found.unpaired == {"train_A/x.png", "-train_B/y.png"}
