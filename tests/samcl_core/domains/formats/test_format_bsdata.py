"""BSData as https://github.com/2Obe/BSData is laid out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.domains.formats import ReadOptions, get_format
from samcl_core.errors import DataError

FIRST, SECOND = "data/01_200902053521_585000_090_crop_2.jpg", "data/01_200908225219_437500_315_crop_1.jpg"
CLEAN, NOT_DRAWN = "data/01_200828110014_277500_315_crop_2.jpg", "data/01_200916071825_597500_315_crop_1.jpg"


def test_with_its_table(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("bsdata", sample("bsdata"))
    assert found.rows == {
        FIRST: ("train", [("Pitting", 8), ("Pitting", 6)]),
        SECOND: ("test", [("Pitting", 9)]),
        CLEAN: (None, []),
    }
    assert (found.negatives, found.unpaired, found.pixels) == ({CLEAN}, set(), 23)
    assert {entry.group for entry in found.entries} == {""}


def test_without_its_table_places_are_groups(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("bsdata")
    (root / "image_data.json").unlink()
    found = scan("bsdata", root)
    assert {entry.path.relative_to(root).as_posix(): entry.group for entry in found.entries} == {
        FIRST: "585000_090",
        SECOND: "437500_315",
        CLEAN: "277500_315",
        NOT_DRAWN: "597500_315",
    }
    assert {split for split, _ in found.rows.values()} == {None}
    assert found.unpaired == {NOT_DRAWN}


def test_odd_names_and_missing_images(sample: Callable[[str], Path], tree, scan: Callable) -> None:
    sample("bsdata")
    tree.image("data/schräg 1.b.JPG", "data/no label.jpg")
    tree.text("label/schräg 1.b.json", json.dumps(_label("schräg 1.b.JPG", (0, 0, 2, 2))))
    tree.text("label/lost.json", json.dumps(_label("lost.jpg", (0, 0, 2, 2))))
    found = scan("bsdata", tree.root)
    assert found.rows["data/schräg 1.b.JPG"] == (None, [("Pitting", 4)])
    assert "data/no label.jpg" in found.unpaired
    missing = [entry.image for entry in found.entries if entry.image is not None and not entry.image.is_file()]
    assert [path.name for path in missing] == ["lost.jpg"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"filename": "x.jpg", "train_test_split": "dev"}, "images[0].train_test_split: found 'dev', expected train"),
        ({"train_test_split": "test"}, "expected an object with the field 'filename'"),
    ],
)
def test_a_table_that_cannot_be_understood(
    sample: Callable[[str], Path], tree, entry: dict[str, str], message: str
) -> None:
    sample("bsdata")
    tree.text("image_data.json", json.dumps({"images": [entry]}))
    with pytest.raises(DataError) as caught:
        get_format("bsdata").scan(tree.root, ReadOptions())
    assert message in str(caught.value) and "image_data.json" in str(caught.value)


def test_other_labelme_folders_are_not_taken_for_it(tree) -> None:
    tree.image("data/x.jpg")
    tree.text("label/x.json", json.dumps(_label("x.jpg", (0, 0, 2, 2))))
    assert not get_format("bsdata").matches(tree.root)


def _label(image: str, box: tuple[int, int, int, int]) -> dict[str, object]:
    x, y, width, height = box
    points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    shape = {"label": "Pitting", "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
    return {"version": "4.5.6", "flags": {}, "shapes": [shape], "imagePath": image, "imageData": None}
