"""COCO as https://cocodataset.org/#format-data describes it, and as tools export it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samcl_core.domains.annotations import Shapes
from samcl_core.domains.formats import ReadOptions, get_format
from samcl_core.errors import DataError, LayoutError, SamclError, UnsafeFileError

JSON = "annotations/instances_default.json"


@pytest.fixture(scope="module")
def samples(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("annotation_samples.py"))


def _scan(root: Path) -> list[Any]:
    return get_format("coco").scan(root, ReadOptions())


def test_coco_2017(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("coco", sample("coco"))
    assert found.rows == {
        "train2017/000000000001.jpg": ("train", [("cat", 8), ("dog", 8)]),
        "train2017/000000000002.jpg": ("train", [("cat", 6), ("dog", 6)]),
        "train2017/000000000003.jpg": ("train", []),
        "val2017/000000000001.jpg": ("test", []),
        "val2017/000000000004.jpg": ("test", [("cat", 48)]),
    }
    assert found.negatives == {"train2017/000000000003.jpg", "val2017/000000000001.jpg"}
    assert found.pixels == 8 + 8 + 6 + 48
    crowds = [one.is_crowd for one in found.entries[1].annotation.instances((16, 12), 128)]
    assert crowds == [True, False]


def test_run_lengths_go_down_the_columns(sample: Callable[[str], Path], scan: Callable) -> None:
    plain, packed = (one.mask for one in scan("coco", sample("coco")).entries[1].annotation.instances((16, 12), 128))
    assert [tuple(place) for place in zip(*plain.nonzero(), strict=True)] == [
        (1, 0),
        (2, 0),
        (8, 0),
        (9, 0),
        (10, 0),
        (11, 0),
    ]
    assert (plain == packed).all()


def test_an_export_of_a_tool(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("coco", sample("coco_tool"))
    assert found.rows == {
        "images/default/a.png": (None, [("cat", 8)]),
        "images/default/b.png": (None, []),
        "images/default/c.png": (None, [("cat", 8)]),
    }


def test_roboflow(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("coco", sample("roboflow"))
    assert found.rows == {
        f"{folder}/{name}": (split, [("cat", pixels)])
        for at, (folder, split) in enumerate({"train": "train", "valid": "val", "test": "test"}.items())
        for name, pixels in ((f"a_jpg.rf.{at}.jpg", 8), ("same.jpg", 4))
    }


def test_other_names_and_places(tree: Any, scan: Callable, samples: ModuleType) -> None:
    tree.image("pictures/a b/ü.png", "other/ü.png", "masks/a b/x.png", "images/a b/x.png")
    objects = [
        {"segmentation": [samples.rectangle(0, 0, 2, 2)]},
        {"segmentation": [samples.rectangle(0, 0, 3, 1)], "image_id": 2},
    ]
    tree.text("labels.json", samples.coco_file(["a b\\ü.png", "x.png"], objects))
    assert scan("coco", tree.root).rows == {
        "pictures/a b/ü.png": (None, [("cat", 4)]),
        "images/a b/x.png": (None, [("cat", 3)]),
    }


def test_a_listed_image_that_is_missing_is_reported_where_it_should_be(
    sample: Callable[[str], Path], scan: Callable
) -> None:
    root = sample("roboflow")
    (root / "train/same.jpg").unlink()
    (entry,) = [entry for entry in scan("coco", root).entries if not entry.image.exists()]
    assert (entry.image, entry.split) == (root / "train/same.jpg", "train")
    assert entry.annotation is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": []}, "annotations[0]: found {"),
        ({"segmentation": None}, "expected polygons or run lengths in `segmentation`; a box alone says no outline"),
        (
            {"segmentation": [[1, 1, 4, 4]]},
            "segmentation[0]: found [1, 1, 4, 4], expected x, y of three or more points",
        ),
        ({"segmentation": [[1, 1, 4, 4, 5, 5, 6]]}, "these are 7 numbers"),
        ({"segmentation": [1, 1, 4, 4, 5, 5]}, "segmentation[0]: found 1, expected a list of numbers"),
        ({"segmentation": [["a"] * 6]}, "expected a list of numbers"),
        ({"segmentation": [[True] * 6]}, "expected a list of numbers"),
        ({"segmentation": [[1e999] * 6]}, "expected coordinates in pixels of the image"),
        ({"segmentation": [[10**400] * 6]}, "expected coordinates in pixels of the image"),
        ({"segmentation": "x" * 1000}, "found 'xxxxxxxxxxxx...xxxxxxxxxxxxx', expected a list"),
        ({"segmentation": {"size": [12, 16]}}, "expected an object with the field 'counts'"),
        ({"segmentation": {"size": [12, 16], "counts": [1.5]}}, "counts[0]: found 1.5, expected a whole number"),
        ({"segmentation": {"size": [12, 16], "counts": {}}}, "counts: found {}, expected a list"),
        ({"segmentation": {"size": [12, 16], "counts": [100]}}, "run lengths add up to 100, expected 12 x 16 = 192"),
        ({"segmentation": {"size": [12, 16], "counts": [-1, 193]}}, "a run length is -1, expected a number of pixels"),
        ({"segmentation": {"size": [12, 16], "counts": "é~"}}, "characters or an end"),
        ({"segmentation": {"size": [16, 12], "counts": [192]}}, "run lengths of 12x16 pixels, expected 16x12"),
        ({"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}, "of at most"),
        ({"segmentation": [[0, 0, 1e6, 0, 0, 1e6, 1e6, 1e6]]}, "pixels in length, expected at most"),
        ({"category_id": 99}, "annotations[0].category_id: found 99, expected the id of one of the categories"),
        ({"category_id": [1]}, "category_id: found [1], expected a whole number"),
        ({"iscrowd": 2}, "iscrowd: found 2, expected 0 or 1"),
        ({"iscrowd": "no"}, "iscrowd: found 'no', expected 0 or 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_one_image_is_said_of_it_alone(
    tree: Any, samples: ModuleType, change: dict[str, Any], message: str
) -> None:
    tree.image("a.png", "b.png")
    good = {"segmentation": [samples.rectangle(0, 0, 2, 2)]}
    tree.text(JSON, samples.coco_file(["a.png", "b.png"], [good | change, good | {"image_id": 2}]))
    bad, other = _scan(tree.root)
    with pytest.raises(DataError) as caught:
        bad.annotation.instances((16, 12), 128)
    assert message in str(caught.value) and f"{JSON}: " in str(caught.value)
    assert not bad.is_negative
    assert len(bad.annotation.digest()) == 64
    assert [one.mask.sum() for one in other.annotation.instances((16, 12), 128)] == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "images: found {}, expected a list"),
        ({"images": [{"id": 1}]}, "images[0]: found {'id': 1}, expected an object with the field 'file_name'"),
        ({"images": [{"file_name": "a.png"}]}, "expected an object with the field 'id'"),
        ({"images": [{"id": 1, "file_name": 7}]}, "images[0].file_name: found 7, expected a text"),
        (
            {"images": [{"id": 1, "file_name": "a\u0000.png"}]},
            "file_name: found 'a\\x00.png', expected the name of a file",
        ),
        ({"images": [{"id": 1, "file_name": "\ud800.png"}]}, "expected a text of whole characters"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]}, "expected each image once"),
        ({"images": [3]}, "images[0]: found 3, expected an object with the field 'id'"),
        ({"annotations": [{"image_id": 5}]}, "annotations[0].image_id: found 5, expected the id of one of the images"),
        ({"annotations": None}, "annotations: found None, expected a list"),
        ({"categories": [{"id": 1, "name": None}]}, "categories[0].name: found None, expected a text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_is_wrong_as_a_whole_is_one_error(
    tree: Any, samples: ModuleType, change: dict[str, Any], message: str
) -> None:
    tree.image("a.png")
    tree.text(JSON, samples.coco_file(["a.png"], [], **change))
    with pytest.raises(DataError) as caught:
        _scan(tree.root)
    assert message in str(caught.value) and f"{JSON}: " in str(caught.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 16, "height": 0}, "height: found 0, expected a side of an image of 1 to"),
        ({"width": 10**9, "height": 10**9}, "width: found 1000000000, expected a side of an image"),
        ({"width": "16", "height": 12}, "width: found '16', expected a whole number"),
        ({"width": 16}, "expected both width and height, or neither"),
    ],
)
def test_sizes_are_bounded(tree: Any, samples: ModuleType, size: dict[str, Any], message: str) -> None:
    tree.image("a.png")
    images = [{"id": 1, "file_name": "a.png", **size}]
    tree.text(JSON, samples.coco_file([], [{"segmentation": [samples.rectangle(0, 0, 2, 2)]}], images=images))
    with pytest.raises(DataError, match="expected") as caught:
        _scan(tree.root)[0].annotation.instances((16, 12), 128)
    assert message in str(caught.value)


def test_without_a_size_the_image_says_it(tree: Any, scan: Callable, samples: ModuleType) -> None:
    tree.image("a.png")
    images = [{"id": "one", "file_name": "a.png"}]
    objects = [{"segmentation": [samples.rectangle(0, 0, 2, 2)], "image_id": "one"}]
    tree.text(JSON, samples.coco_file([], objects, images=images))
    assert scan("coco", tree.root).rows == {"a.png": (None, [("cat", 4)])}


@pytest.mark.parametrize(
    "name",
    ["../a.png", "/etc/a.png", "C:\\a.png", "x/../../../a.png", "..\\..\\a.png", "..", "link.png", "folder/a.png"],
)
def test_no_image_outside_of_the_folder_is_read(tree: Any, samples: ModuleType, name: str) -> None:
    outside, tree.root = tree.root, tree.root / "data"
    tree.image("b.png")
    (outside / "a.png").write_bytes((tree.root / "b.png").read_bytes())
    (tree.root / "link.png").symlink_to(outside / "a.png")
    (tree.root / "folder").symlink_to(outside)
    tree.text("all.json", samples.coco_file([name], []))
    with pytest.raises(UnsafeFileError, match="leads out of the folder of the data set"):
        _scan(tree.root)


def test_the_json_file_itself_may_not_be_a_link_that_leads_out(tree: Any, samples: ModuleType) -> None:
    outside, tree.root = tree.root, tree.root / "data"
    tree.image("a.png")
    (outside / "all.json").write_text(samples.coco_file(["a.png"], []))
    (tree.root / "all.json").symlink_to(outside / "all.json")
    with pytest.raises(UnsafeFileError, match=r"all\.json is, or is behind, a link"):
        _scan(tree.root)


@pytest.mark.parametrize(
    "text", ['{"images": [', '{"images": [' + "[" * 100_000, '{"images": [\xff', '{"images": [' + "9" * 5000 + "]}"]
)
def test_damaged_json_is_one_error(tree: Any, text: str) -> None:
    tree.text("all.json", "")
    (tree.root / "all.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"all\.json: cannot be read as"):
        _scan(tree.root)


def test_an_image_in_two_files_is_an_error_that_names_both(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    tree.text("one.json", samples.coco_file(["a.png"], []))
    tree.text("two.json", samples.coco_file(["a.png"], []))
    with pytest.raises(
        DataError, match=r"two\.json: images\[0\].*each image once; one\.json has an entry of it before"
    ):
        _scan(tree.root)


def test_several_images_of_one_name_are_an_error(tree: Any, samples: ModuleType) -> None:
    tree.image("one/a.png", "two/a.png")
    tree.text("all.json", samples.coco_file(["a.png"], []))
    with pytest.raises(DataError, match=r"expected the path of one image; 2 are called so: one/a\.png, two/a\.png"):
        _scan(tree.root)


def test_the_digest_of_an_image_is_of_its_own_objects(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png", "b.png")

    def digests(second: dict[str, Any]) -> list[str]:
        objects = [
            {"segmentation": [samples.rectangle(0, 0, 2, 2)]},
            {"segmentation": [[0, 0, 1, 0, 1, 1]], "image_id": 2} | second,
        ]
        tree.text(JSON, samples.coco_file(["a.png", "b.png"], objects))
        return [entry.annotation.digest() for entry in _scan(tree.root)]

    before, after = digests({}), digests({"category_id": 18})
    assert before[0] == after[0] and before[1] != after[1]


def test_more_objects_than_fit_into_memory_are_refused_before_they_are_drawn(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    images = [{"id": 1, "file_name": "a.png", "width": 9000, "height": 9000}]
    tree.text(JSON, samples.coco_file([], [{"segmentation": [[0, 0, 1, 0, 1, 1]]}] * 60, images=images))
    with pytest.raises(DataError, match="60 objects in an image of 81000000 pixels, expected at most 53"):
        _scan(tree.root)[0].annotation.instances((16, 12), 128)


def test_no_such_file(tree: Any) -> None:
    tree.image("a.png")
    tree.text("points.json", json.dumps({"a.png": [[[1, 2]], [1]]}))
    assert not get_format("coco").matches(tree.root)
    with pytest.raises(LayoutError, match="expected annotations/instances_"):
        _scan(tree.root)


def test_a_file_of_boxes_says_so_for_every_image(tree: Any, samples: ModuleType) -> None:
    tree.image("a.png")
    tree.text(JSON, samples.coco_file(["a.png"], [{"segmentation": []}]))
    (entry,) = _scan(tree.root)
    assert not isinstance(entry.annotation, Shapes) and entry.annotation.files == (tree.root / JSON,)
    with pytest.raises(SamclError, match="a box alone says no outline"):
        entry.annotation.instances((16, 12), 128)
