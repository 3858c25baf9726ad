"""Pascal VOC as http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.formats import ReadOptions, get_format
from samcl_core.domains.formats.voc import VOC_CLASSES, VocMaps
from samcl_core.errors import DataError, ImageError, LayoutError, UnsafeFileError

FIRST = "JPEGImages/2007_000032.jpg"


@pytest.fixture(scope="module")
def samples(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("annotation_samples.py"))


def test_voc2012(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("voc", sample("voc"))
    # Void (8 x 2 pixels) is no object; the list of test images has no published masks; x is in no list.
    assert found.rows == {
        FIRST: ("train", [("person", 9), ("aeroplane", 8), ("aeroplane", 8)]),
        "JPEGImages/2007_000039.jpg": ("test", [("person", 10), ("aeroplane", 8)]),
    }
    assert (found.pixels, found.unpaired, found.negatives) == (9 + 16 + 10 + 8, set(), set())


def test_without_a_map_of_objects_a_class_is_one_object(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("voc")
    (root / "SegmentationObject/2007_000032.png").unlink()
    assert scan("voc", root).rows[FIRST] == ("train", [("aeroplane", 16), ("person", 9)])


def test_without_lists_every_image_counts(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("voc")
    for path in (root / "ImageSets/Segmentation").iterdir():
        path.unlink()
    (root / "SegmentationClass/lost.png").write_bytes((root / "SegmentationClass/x.png").read_bytes())
    found = scan("voc", root)
    assert {split for split, _ in found.rows.values()} == {None}
    assert found.unpaired == {"JPEGImages/2007_000001.jpg", "JPEGImages/2008_000001.jpg"}
    assert not (root / "JPEGImages/lost.jpg").exists() and "JPEGImages/lost.jpg" in found.rows


@pytest.mark.parametrize(
    ("lists", "splits"),
    [
        ({"train": "2007_000032", "val": "2007_000039", "test": "x"}, ["train", "val", "test"]),
        ({"trainval": "2007_000032\n2007_000039", "test": "x"}, ["train", "train", "test"]),
        ({"trainval": "2007_000032\n2007_000039\nx"}, [None, None, None]),
        ({"train": "2007_000032\nx", "val": "2007_000032\n2007_000039"}, ["train", "test", "train"]),
        ({"default": "2007_000032\n\n 2007_000039 \nx\n"}, [None, None, None]),
    ],
)
def test_lists(sample: Callable[[str], Path], scan: Callable, lists: dict[str, str], splits: list[str]) -> None:
    root = sample("voc")
    for path in (root / "ImageSets/Segmentation").iterdir():
        path.unlink()
    for name, text in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text(text)
    rows = scan("voc", root).rows
    assert [rows[f"JPEGImages/{name}.jpg"][0] for name in ("2007_000032", "2007_000039", "x")] == splits


def test_a_listed_image_without_files_is_reported(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("voc")
    with (root / "ImageSets/Segmentation/train.txt").open("a") as stream:
        stream.write("2007_000001\n2007_999999\n")
    found = scan("voc", root)
    assert found.unpaired == {"JPEGImages/2007_000001.jpg", "JPEGImages/2007_999999.jpg"}


def test_maps_in_colours_or_grey_say_the_same(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("voc")
    expected = scan("voc", root).rows
    for path in root.glob("Segmentation*/*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image.convert("RGB"))).save(path)
    assert {name: sorted(row[1]) for name, row in scan("voc", root).rows.items()} == {
        name: sorted(row[1]) for name, row in expected.items()
    }
    sample("voc")
    for path in root.glob("Segmentation*/*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)).save(path)
    assert scan("voc", root).rows == expected


def test_classes_of_others(sample: Callable[[str], Path], scan: Callable) -> None:
    root = sample("voc")
    (root / "class_names.txt").write_text(
        "__ignore__\n_background_\nscrew\n" + "".join(f"c{at}\n" for at in range(2, 16))
    )
    assert scan("voc", root).rows[FIRST][1] == [("c15", 9), ("screw", 8), ("screw", 8)]
    # CVAT's list is by colour, with the palette's where there is none: line 1 is (128, 0, 0).
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\nnut:::\nbolt:192,128,128::\n")
    assert scan("voc", root).rows[FIRST][1] == [("bolt", 9), ("nut", 8), ("nut", 8)]
    (root / "labelmap.txt").write_text("background:0,0,0::\nnut:red::\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: class 1: found 'nut:red::', expected name:red,green,blue"):
        scan("voc", root)
    options = ReadOptions({15: "human"})
    assert scan("voc", root, options).rows[FIRST][1] == [("human", 9)]


def test_a_value_without_a_class_is_an_error(sample: Callable[[str], Path], tree: Any, samples: ModuleType) -> None:
    root = sample("voc")
    tree.codes("SegmentationClass/x.png", ((0, 0, 2, 2), 37), palette=samples.voc_palette())
    maps = VocMaps(root / "SegmentationClass/x.png", None, dict(enumerate(VOC_CLASSES, 1)))
    with pytest.raises(DataError, match=r"x\.png: holds the value 37, expected those of 20 classes"):
        maps.instances((16, 12), 128)
    tree.codes("SegmentationClass/x.png", ((0, 0, 2, 2), (1, 2, 3)))
    with pytest.raises(DataError, match="holds the colour 1,2,3"):
        maps.instances((16, 12), 128)
    assert maps.size is None


def test_maps_of_two_sizes_and_damaged_ones(sample: Callable[[str], Path]) -> None:
    root = sample("voc")
    first = get_format("voc").scan(root, ReadOptions())[0]
    assert [file.parent.name for file in first.annotation.files] == ["SegmentationClass", "SegmentationObject"]
    Image.new("L", (5, 4)).save(root / "SegmentationObject/2007_000032.png")
    with pytest.raises(DataError, match=r"SegmentationObject/2007_000032\.png: 5x4 pixels, the map of classes 16x12"):
        first.annotation.instances((16, 12), 128)
    (root / "SegmentationObject/2007_000032.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match="cannot be read"):
        first.annotation.instances((16, 12), 128)


def test_the_digest_changes_with_either_map_and_with_the_classes(sample: Callable[[str], Path]) -> None:
    root = sample("voc")
    maps = get_format("voc").scan(root, ReadOptions())[0].annotation
    seen = {maps.digest(), VocMaps(*maps.files, {1: "plane"}).digest()}
    for folder in ("SegmentationClass", "SegmentationObject"):
        Image.new("L", (16, 12)).save(root / folder / "2007_000032.png")
        seen.add(maps.digest())
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\\..\\..\\secret", "C:/x"])
def test_names_in_lists_do_not_lead_out(sample: Callable[[str], Path], scan: Callable, name: str) -> None:
    root = sample("voc")
    (root / "ImageSets/Segmentation/train.txt").write_text(f"2007_000032\n{name}\n")
    with pytest.raises(UnsafeFileError, match=r"train\.txt: line 2: .* leads out of the folder"):
        scan("voc", root)


def test_links_do_not_lead_out(sample: Callable[[str], Path], scan: Callable, tmp_path_factory: Any) -> None:
    root = sample("voc")
    outside = tmp_path_factory.mktemp("outside") / "mask.png"
    outside.write_bytes((root / "SegmentationClass/x.png").read_bytes())
    (root / "SegmentationClass/x.png").unlink()
    (root / "SegmentationClass/x.png").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"x\.png is, or is behind, a link"):
        scan("voc", root)


def test_the_palette_and_the_classes(samples: ModuleType) -> None:
    palette = samples.voc_palette()
    assert (palette[3:6], palette[45:48], palette[765:768]) == ([128, 0, 0], [192, 128, 128], [224, 224, 192])
    assert (len(VOC_CLASSES), VOC_CLASSES[14], list(VOC_CLASSES)) == (20, "person", sorted(VOC_CLASSES))


def test_other_folders(tree: Any, scan: Callable) -> None:
    tree.image("JPEGImages/a.jpg", "masks/a.png")
    assert not get_format("voc").matches(tree.root)
    with pytest.raises(LayoutError, match="expected JPEGImages/, SegmentationClass/"):
        scan("voc", tree.root)
