"""YOLO segmentation as https://docs.ultralytics.com/datasets/segment/ describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samcl_core.domains.formats import ReadOptions, detect_format, get_format
from samcl_core.errors import DataError, LayoutError, UnsafeFileError


@pytest.fixture(scope="module")
def samples(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("annotation_samples.py"))


def test_coco8_seg(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("yolo", sample("yolo"))
    assert found.rows == {
        "images/train/a.jpg": ("train", [("person", 48), ("bicycle", 24)]),
        "images/train/b.jpg": ("train", []),
        "images/train/c.jpg": ("train", []),
        "images/val/d.jpg": ("test", [("bicycle", 12)]),
    }
    # An empty label file, and none at all.
    assert found.negatives == {"images/train/b.jpg", "images/train/c.jpg"}
    assert (found.pixels, found.unpaired) == (84, set())


def test_roboflow(sample: Callable[[str], Path], scan: Callable) -> None:
    assert scan("yolo", sample("yolo_roboflow")).rows == {
        "train/images/train.jpg": ("train", [("cat", 48)]),
        "valid/images/valid.jpg": ("val", [("cat", 48)]),
        "test/images/test.jpg": ("test", [("cat", 48)]),
    }


def test_lists_of_images_and_of_folders(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "val.txt").write_text("./images/val/d.jpg\nimages/train/c.jpg\n\n")
    (root / "data.yaml").write_text("train: [images/train]\nval: val.txt\nnames: [person, bicycle]\n")
    splits = {name: split for name, (split, _) in scan("yolo", root).rows.items()}
    # c is in both: it stays training data.
    assert splits == {f"images/train/{name}.jpg": "train" for name in "abc"} | {"images/val/d.jpg": "test"}


def test_the_same_folder_for_both_splits_is_training(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/train\nnames: {0: person, 1: bicycle}\n")
    assert {split for split, _ in scan("yolo", root).rows.values()} == {"train"}


def test_without_a_yaml_classes_are_numbers(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "data.yaml").unlink()
    assert detect_format(root).name == "yolo"
    found = scan("yolo", root)
    assert found.rows["images/train/a.jpg"] == ("train", [("0", 48), ("1", 24)])
    assert found.rows["images/val/d.jpg"] == ("test", [("1", 12)])


def test_labels_beside_masks_are_yolo_only_with_a_yaml(tree: Any, samples: ModuleType) -> None:
    tree.pairs("images/{}.jpg", "masks/{}.png", {"a": [(0, 0, 2, 2)]})
    tree.text("labels/a.txt", "0 0.5 0.5 0.2 0.2\n")
    assert detect_format(tree.root).name == "folders"
    tree.text("environment.yaml", "dependencies: []\n")
    assert detect_format(tree.root).name == "folders"
    tree.text("data.yaml", samples.YAML)
    assert detect_format(tree.root).name == "yolo"


def test_label_files_without_an_image_are_reported(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "labels/train/lost.txt").write_text("0 0 0 1 0 1 1\n")
    (root / "labels/train/classes.txt").write_text("person\n")
    assert scan("yolo", root).unpaired == {"-labels/train/lost.txt"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 2: found '0 0.5 0.5 0.2 0.2', expected a class and x, y of three or more points"),
        ("0 0.5 0.5 0.2", "expected x, y of three or more points; these are 3 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "these are 7 numbers"),
        ("0", "these are 0 numbers"),
        ("2 0.1 0.1 0.2 0.2 0.3 0.3", "expected a class number that data.yaml names (2 names)"),
        ("-1 0.1 0.1 0.2 0.2 0.3 0.3", "expected a class number that data.yaml names"),
        ("person 0.1 0.1 0.2 0.2 0.3 0.3", "expected a class number and coordinates, separated by spaces"),
        ("0 0.1,0.1 0.2,0.2 0.3,0.3", "expected a class number and coordinates, separated by spaces"),
        ("0 0.1 0.1 0.2 0.2 0.3 x", "expected a class number and coordinates, separated by spaces"),
        ("0 0.1 0.1 0.2 0.2 0.3 1.5", "expected coordinates from 0 to 1, shares of the image's width and height"),
        ("0 0.1 0.1 0.2 0.2 0.3 nan", "expected coordinates from 0 to 1"),
        ("0 0.1 0.1 0.2 0.2 -inf 0.3", "expected coordinates from 0 to 1"),
        ("0 120 40 300 40 300 90", "expected coordinates from 0 to 1"),
    ],
)
def test_a_wrong_line_is_said_of_its_image_alone(
    sample: Callable[[str], Path], scan: Callable, line: str, message: str
) -> None:
    root = sample("yolo")
    path = root / "labels/train/a.txt"
    path.write_text(f"0 0 0 1 0 1 1\n{line}\n")
    entries = scan("yolo", root).entries
    with pytest.raises(DataError) as caught:
        entries[0].annotation.instances((16, 12), 128)
    assert message in str(caught.value) and f"{path}: line 2: found " in str(caught.value)
    assert not entries[0].is_negative
    assert entries[3].annotation.instances((16, 12), 128)[0].mask.sum() == 12


def test_coordinates_a_hundredth_outside_are_cut(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "labels/train/a.txt").write_text("0 -0.01 -0.01 1.01 -0.01 1.01 0.5 -0.01 0.5\n")
    assert scan("yolo", root).rows["images/train/a.jpg"] == ("train", [("person", 96)])


def test_a_label_file_that_is_no_text(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("yolo")
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe0\x00")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read as UTF-8 text"):
        scan("yolo", root).entries[0].annotation.instances((16, 12), 128)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [person\n", r"data\.yaml: cannot be read as YAML"),
        ("names: person\n", r"data\.yaml: names: found 'person', expected a list of names, or names by number"),
        ("names: {a: person}\n", r"names: found .*, expected a list of names, or names by number"),
        ("names: [a, b]\nkpt_shape: [17, 3]\n", r"kpt_shape: found \[17, 3\], expected no key points"),
        ("names: [1, 2]\n", r"names\[0\]: found 1, expected a text"),
        ("names: [a, b]\ntrain: images/none\n", r"train: found 'images/none', expected a folder of images, or a list"),
        ("names: [a, b]\ntrain: 7\n", r"train: found 7, expected a text"),
        ("names: [a, b]\ntrain: [images/train, 7]\n", r"train\[1\]: found 7, expected a text"),
        ("names: !!python/object/apply:os.system [id]\n", r"data\.yaml: "),
    ],
)
def test_a_wrong_description_is_one_error(
    sample: Callable[[str], Path], scan: Callable, yaml: str, message: str
) -> None:
    root = sample("yolo")
    (root / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=message):
        scan("yolo", root)


@pytest.mark.parametrize("place", ["/etc", "../../etc", "images/../../..", "C:/data"])
def test_a_description_does_not_lead_out(sample: Callable[[str], Path], scan: Callable, place: str) -> None:
    root = sample("yolo")
    (root / "data.yaml").write_text(f"path: /\ntrain: {place}\nval: images/val\nnames: [a, b]\n")
    with pytest.raises(UnsafeFileError, match=r"data\.yaml: train: .* leads out of the folder"):
        scan("yolo", root)


def test_lists_and_labels_do_not_lead_out(
    sample: Callable[[str], Path], scan: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = sample("yolo")
    (root / "val.txt").write_text("images/val/d.jpg\n/etc/passwd.jpg\n")
    (root / "data.yaml").write_text("train: images/train\nval: val.txt\nnames: [a, b]\n")
    with pytest.raises(UnsafeFileError, match=r"val\.txt: line 2: '/etc/passwd\.jpg' leads out"):
        scan("yolo", root)
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text("top secret\n")
    (root / "val.txt").unlink()
    (root / "val.txt").symlink_to(secret)
    with pytest.raises(UnsafeFileError, match=r"val\.txt is, or is behind, a link") as caught:
        scan("yolo", root)
    assert "top secret" not in str(caught.value)
    (root / "val.txt").unlink()
    (root / "val.txt").write_text("images/val/d.jpg\n")
    (root / "labels/val/d.txt").unlink()
    (root / "labels/val/d.txt").symlink_to(secret)
    with pytest.raises(UnsafeFileError, match=r"d\.txt is, or is behind, a link"):
        scan("yolo", root)
    (root / "labels/val/d.txt").unlink()
    (root / "images/train/link.jpg").symlink_to(secret)
    with pytest.raises(UnsafeFileError, match=r"link\.jpg is, or is behind, a link"):
        scan("yolo", root)


def test_no_labels(tree: Any) -> None:
    tree.image("images/a.jpg")
    tree.text("notes/labels.txt", "x")
    assert not get_format("yolo").matches(tree.root)
    (tree.root / "images/a.jpg").unlink()
    with pytest.raises(LayoutError, match="expected images/ and labels/"):
        get_format("yolo").scan(tree.root, ReadOptions())
