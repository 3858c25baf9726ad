"""Kvasir-SEG as https://datasets.simula.no/kvasir-seg/ describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.domains.formats import detect_format


def test_kvasir(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("kvasir", sample("kvasir"))
    assert found.rows == {
        "images/cju0qkwl35piu0993l0dewei2.jpg": (None, [("", 64)]),
        "images/cju0qoxqj9q6s0835b43399p4.jpg": (None, [("", 64)]),
    }
    assert (found.pixels, found.unpaired) == (128, set())


@pytest.mark.parametrize("boxes", ["kavsir_bboxes.json", "kvasir_bboxes.json"])
def test_odd_names_and_missing_partners(tree, scan: Callable, boxes: str) -> None:
    tree.pairs("images/{}.JPG", "masks/{}.JPG", {"poly p.1 ä": [(0, 0, 8, 8)]})
    tree.image("images/a.jpg")
    tree.mask("masks/b.jpg")
    tree.text(boxes, "not read")
    assert detect_format(tree.root).name == "kvasir"
    found = scan("kvasir", tree.root)
    assert found.rows["images/poly p.1 ä.JPG"] == (None, [("", 64)])
    assert found.unpaired == {"images/a.jpg", "-masks/b.jpg"}
