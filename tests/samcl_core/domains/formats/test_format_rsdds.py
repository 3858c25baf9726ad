"""RSDDs as its authors publish it (Gan et al., IEEE Sensors Journal 17, 2017)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from samcl_core.domains.formats import detect_format


def test_both_types(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("rsdds", sample("rsdds"))
    assert found.rows == {
        "Type-I RSDDs dataset/Rail surface images/rail_1.jpg": (None, [("", 32)]),
        "Type-I RSDDs dataset/Rail surface images/rail_2.jpg": (None, [("", 32)]),
        "Type-II RSDDs dataset/Rail surface images/rail_1.jpg": (None, [("", 64)]),
    }
    assert (found.pixels, found.unpaired) == (128, set())


def test_one_type_alone_with_odd_names(tree, scan: Callable) -> None:
    tree.pairs("Rail_surface_images/{}.JPG", "GroundTruth/{}.jpg", {"rail 1.ß": [(0, 0, 8, 8)]})
    tree.image("Rail_surface_images/rail_2.jpg")
    tree.mask("GroundTruth/rail_3.jpg")
    assert detect_format(tree.root).name == "rsdds"
    found = scan("rsdds", tree.root)
    assert found.rows["Rail_surface_images/rail 1.ß.JPG"] == (None, [("", 64)])
    assert found.unpaired == {"Rail_surface_images/rail_2.jpg", "-GroundTruth/rail_3.jpg"}
