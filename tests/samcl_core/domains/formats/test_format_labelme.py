"""LabelMe as https://github.com/wkentaro/labelme writes it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.formats import ReadOptions, get_format
from samcl_core.errors import DataError, LayoutError, UnsafeFileError


@pytest.fixture(scope="module")
def samples(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("annotation_samples.py"))


def _png(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _read(root: Path) -> list[Any]:
    (entry,) = get_format("labelme").scan(root, ReadOptions())
    return entry.annotation.instances((16, 12), 128)


def test_the_instance_segmentation_example(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("labelme", sample("labelme"))
    # A point and a line have no area; two polygons of one group are one object.
    assert found.rows == {
        "data_annotated/2011_000003.jpg": (None, [("cat", 8), ("dog", 12)]),
        "data_annotated/2011_000006.jpg": (None, [("cat", 8)]),
    }
    assert (found.pixels, found.unpaired, found.negatives) == (28, set(), set())


def test_images_that_are_not_annotated_yet_lack_their_partner(
    sample: Callable[[str], Path], tree: Any, scan: Callable, samples: ModuleType
) -> None:
    root = sample("labelme")
    tree.image("data_annotated/not yet.jpg", "elsewhere/x.jpg")
    tree.text("data_annotated/seen.json", samples.labelme_file("seen.jpg"))
    tree.image("data_annotated/seen.jpg")
    found = scan("labelme", root)
    assert found.unpaired == {"data_annotated/not yet.jpg"}
    # A file without shapes does not say whether there is nothing to see.
    assert found.rows["data_annotated/seen.jpg"] == (None, []) and not found.negatives


def test_splits_and_files_apart(tree: Any, scan: Callable, samples: ModuleType) -> None:
    for split in ("train", "test"):
        tree.image(f"{split}/images/same ü.png")
        shape = {"points": samples.corners(0, 0, 2, 2)}
        tree.text(f"{split}/annotations/same ü.json", samples.labelme_file("..\\images\\same ü.png", shape))
    assert scan("labelme", tree.root).rows == {
        "train/images/same ü.png": ("train", [("cat", 4)]),
        "test/images/same ü.png": ("test", [("cat", 4)]),
    }


def test_renamed_files_are_found_by_the_name_they_share(tree: Any, scan: Callable, samples: ModuleType) -> None:
    tree.image("new.png", "other.png")
    tree.text("new.json", samples.labelme_file("old.png", {"points": samples.corners(0, 0, 2, 2)}))
    tree.text("lost.json", samples.labelme_file("lost.png", {"points": samples.corners(0, 0, 2, 2)}))
    found = scan("labelme", tree.root)
    assert found.rows["new.png"] == (None, [("cat", 4)])
    assert [entry.image.name for entry in found.entries if not entry.image.exists()] == ["lost.png"]


def test_a_circle_has_the_area_of_a_circle(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    circle = {"points": [[50, 40], [50, 70]], "shape_type": "circle"}
    tree.text("a.json", samples.labelme_file("a.png", circle, imageWidth=100, imageHeight=80))
    (drawn,) = _read(tree.root)
    assert drawn.mask.sum() == pytest.approx(np.pi * 30**2, rel=0.01)
    rows, columns = drawn.mask.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 69, 20, 79)


def test_masks_are_placed_at_their_corner_and_cut(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    patch = np.array([[0, 1, 1], [1, 0, 1]], dtype=np.uint8)
    mask = {"shape_type": "mask", "mask": _png(patch)}
    inside, outside = mask | {"points": [[4, 5], [6, 6]]}, mask | {"points": [[-0.6, 11.4], [1, 12]], "label": "dog"}
    tree.text("a.json", samples.labelme_file("a.png", inside, outside))
    first, second = _read(tree.root)
    assert (first.mask[5:7, 4:7] == patch).all() and first.mask.sum() == 4
    # Rounded to (-1, 11): of the first row, the second and third column are inside.
    assert second.mask[11, :2].all() and second.mask.sum() == 2


def test_a_group_of_a_mask_and_a_polygon_is_one_object(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    mask = {"shape_type": "mask", "mask": _png(np.full((2, 2), 255, np.uint8)), "points": [[0, 0], [1, 1]]}
    parts = [mask | {"group_id": 3}, {"points": samples.corners(1, 0, 4, 2), "group_id": 3}]
    tree.text("a.json", samples.labelme_file("a.png", *parts, {"points": samples.corners(0, 8, 2, 2), "group_id": 4}))
    assert [int(one.mask.sum()) for one in _read(tree.root)] == [10, 4]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"points": [[1, 1], [2, 2]]},
            "shapes[0].points: found [[1, 1], [2, 2]], expected x, y of three or more points",
        ),
        ({"points": [[1, 1, 1]] * 3}, "expected a list of [x, y]"),
        ({"points": [[1, "1"]] * 3}, "points[0]: found [1, '1'], expected a list of numbers"),
        ({"points": [[1, None]] * 3}, "expected a list of numbers"),
        ({"points": [[1, 1e400]] * 3}, "expected coordinates in pixels of the image"),
        ({"points": None}, "shapes[0].points: found None, expected a list"),
        ({"points": [[1, 1]], "shape_type": "rectangle"}, "expected the two points of a rectangle"),
        ({"points": [[1, 1], [2, 2]], "shape_type": "blob"}, "shape_type: found 'blob', expected polygon, rectangle"),
        ({"points": [[1, 1], [2, 2]], "shape_type": 5}, "shape_type: found 5, expected a text"),
        (
            {"points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "%%"},
            "mask: found '%%', expected a PNG as base64",
        ),
        ({"points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "aGk="}, "expected a PNG as base64"),
        ({"points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": None}, "mask: found None, expected a text"),
        ({"points": [[1, 1]] * 3, "label": 5}, "shapes[0].label: found 5, expected a text"),
        ({"points": [[1, 1]] * 3, "label": "\ud800"}, "expected a text of whole characters"),
        ({"points": [[1, 1]] * 3, "group_id": [1]}, "group_id: found [1], expected a whole number"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_shape_is_said_of_its_image_alone(
    tree: Any, samples: ModuleType, shape: dict[str, Any], message: str
) -> None:
    tree.image("a.png", "b.png")
    tree.text("a.json", samples.labelme_file("a.png", shape))
    tree.text("b.json", samples.labelme_file("b.png", {"points": samples.corners(0, 0, 2, 2)}))
    bad, good = get_format("labelme").scan(tree.root, ReadOptions())
    with pytest.raises(DataError) as caught:
        bad.annotation.instances((16, 12), 128)
    assert message in str(caught.value) and "a.json: shapes[0]" in str(caught.value)
    assert good.annotation.instances((16, 12), 128)[0].mask.sum() == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"imageWidth": 0}, "imageWidth: found 0, expected a side of an image"),
        ({"imageWidth": 10**12}, "imageWidth: found 1000000000000, expected a side of an image"),
        ({"imageHeight": None}, "imageWidth: found 16, expected both width and height, or neither"),
        ({"shapes": {}}, "shapes: found {}, expected a list"),
        ({"shapes": [5]}, "shapes[0]: found 5, expected an object"),
        ({"imagePath": 5}, "imagePath: found 5, expected a text"),
        ({"imagePath": ""}, "imagePath: found '', expected the name of a file"),
    ],
)
def test_wrong_fields(tree: Any, samples: ModuleType, fields: dict[str, Any], message: str) -> None:
    tree.image("a.png")
    tree.text("a.json", samples.labelme_file("a.png", **fields))
    with pytest.raises(DataError) as caught:
        _read(tree.root)
    assert f"a.json: {message}" in str(caught.value)


def test_damaged_json_beside_an_image_is_reported(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png", "b.png")
    tree.text("a.json", "")
    tree.text("b.json", samples.labelme_file("b.png", {"points": samples.corners(0, 0, 2, 2)}))
    bad, _ = get_format("labelme").scan(tree.root, ReadOptions())
    assert bad.image == tree.root / "a.png"
    with pytest.raises(DataError, match=r"a\.json: cannot be read as JSON"):
        bad.annotation.instances((16, 12), 128)


def test_two_files_of_one_image(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    for name in ("a.json", "copy of a.json"):
        tree.text(name, samples.labelme_file("a.png", {"points": samples.corners(0, 0, 2, 2)}))
    with pytest.raises(DataError, match=r"copy of a\.json: is of a\.png, which another JSON file is of, too"):
        _read(tree.root)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "C:\\Users\\me\\a.png", "..\\..\\a.png"])
def test_no_image_outside_of_the_folder_is_read(tree: Any, samples: ModuleType, name: str) -> None:
    tree.image("a.png")
    tree.text("a.json", samples.labelme_file(name))
    with pytest.raises(UnsafeFileError, match=r"a\.json: imagePath: .* leads out of the folder of the data set"):
        _read(tree.root)


def test_images_without_a_file_do_not_lead_out_either(
    sample: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = sample("labelme")
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    outside.write_bytes(b"x")
    (root / "data_annotated/link.jpg").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"link\.jpg is, or is behind, a link"):
        _read(root)


def test_embedded_images_are_ignored(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    content = samples.labelme_file("a.png", {"points": samples.corners(0, 0, 2, 2)}, imageData="no image at all")
    tree.text("a.json", content)
    assert [one.mask.sum() for one in _read(tree.root)] == [4]


def test_other_json_files(tree: Any) -> None:
    tree.image("a.png")
    tree.text("package.json", '{"name": "x"}')
    assert not get_format("labelme").matches(tree.root)
    with pytest.raises(LayoutError, match=r"expected x\.json \(LabelMe"):
        _read(tree.root)
