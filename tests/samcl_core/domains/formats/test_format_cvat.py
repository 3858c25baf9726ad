"""CVAT for images 1.1 as https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samcl_core.domains.formats import ReadOptions, get_format
from samcl_core.errors import DataError, LayoutError, UnsafeFileError

# The mask of the documentation's example, of a car.
DOCUMENTED = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"


@pytest.fixture(scope="module")
def samples(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).with_name("annotation_samples.py"))


@pytest.fixture
def read(tree: Any, samples: ModuleType) -> Callable[..., list[Any]]:
    """Objects of one image of 16 x 12 pixels with these shapes."""

    def read(*shapes: str, fields: str = "") -> list[Any]:
        tree.image("images/a.png")
        tree.text("annotations.xml", samples.cvat_file(samples.cvat_image("a.png", *shapes, fields=fields)))
        (entry,) = get_format("cvat").scan(tree.root, ReadOptions())
        return entry.annotation.instances((16, 12), 128)

    return read


def test_a_task(sample: Callable[[str], Path], scan: Callable) -> None:
    found = scan("cvat", sample("cvat"))
    assert found.rows == {
        "images/filename000.jpg": (None, [("cat", 8), ("plate", 15), ("cat", 4)]),
        "images/sub/filename001.jpg": (None, [("cat", 8)]),
        "images/tagged.jpg": (None, []),
    }
    assert (found.pixels, found.negatives) == (8 + 15 + 4 + 8, {"images/tagged.jpg"})
    mask = found.entries[0].annotation.instances((16, 12), 128)[2].mask
    assert [tuple(place) for place in np.argwhere(mask).tolist()] == [(1, 12), (1, 13), (2, 11), (2, 13)]


def test_a_project_with_subsets(sample: Callable[[str], Path], scan: Callable) -> None:
    assert scan("cvat", sample("cvat_project")).rows == {
        "images/Train/same.jpg": ("train", [("cat", 8)]),
        "images/Validation/same.jpg": ("val", [("cat", 8)]),
        "images/Test/same.jpg": ("test", [("cat", 8)]),
    }


def test_the_mask_of_the_documentation(tree: Any, samples: ModuleType) -> None:
    tree.image("images/a.png")
    mask = f'<mask label="car" rle="{DOCUMENTED}" left="707" top="888" width="13" height="15"></mask>'
    image = f'<image id="0" name="a.png" width="1600" height="1200">{mask}</image>'
    tree.text("annotations.xml", samples.cvat_file(image))
    (entry,) = get_format("cvat").scan(tree.root, ReadOptions())
    (car,) = entry.annotation.instances((16, 12), 128)
    assert entry.annotation.size == (1600, 1200)
    drawn = car.mask[888:903, 707:720]
    assert car.mask.sum() == drawn.sum() == sum(map(int, DOCUMENTED.split(",")[1::2]))
    # It is round: one run in each row and each column.
    assert all((np.diff(np.pad(line, 1).astype(int)) > 0).sum() == 1 for line in (*drawn, *drawn.T))


def test_boxes_and_ellipses_turn(read: Callable[..., list[Any]]) -> None:
    upright = '<box label="a" xtl="2" ytl="4" xbr="8" ybr="6"></box>'
    turned = '<box label="a" xtl="2" ytl="4" xbr="8" ybr="6" rotation="90.00"></box>'
    round_ = '<ellipse label="a" cx="8" cy="6" rx="6" ry="3" rotation="0"></ellipse>'
    first, second, third = (one.mask for one in read(upright, turned, round_))
    assert (first[4:6, 2:8].all(), first.sum()) == (True, 12)
    assert (second[2:8, 4:6].all(), second.sum()) == (True, 12)
    assert third.sum() == pytest.approx(np.pi * 6 * 3, abs=3)
    assert third[6, 2:14].all() and not third[:3].any() and not third[9:].any()


def test_a_group_is_one_object(read: Callable[..., list[Any]]) -> None:
    box = '<box label="{}" group_id="{}" xtl="{}" ytl="0" xbr="{}" ybr="2"></box>'
    mask = '<mask label="a" group_id="1" rle="0, 4" left="10" top="0" width="2" height="2"></mask>'
    shapes = [
        box.format("a", 1, 0, 2),
        box.format("b", 1, 3, 5),
        box.format("a", 0, 6, 8),
        box.format("a", 0, 7, 9),
        mask,
    ]
    assert [(one.label, int(one.mask.sum())) for one in read(*shapes)] == [("a", 8), ("b", 4), ("a", 4), ("a", 4)]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            '<polygon label="a" points="1,1;2,2"></polygon>',
            "image 0.polygon 0.points: found '1,1;2,2', expected x, y of",
        ),
        ('<polygon label="a" points="1,1;2,2;3"></polygon>', "these are 5 numbers"),
        ('<polygon label="a" points="a,1;2,2;3,3"></polygon>', "expected numbers of pixels"),
        ('<polygon label="a" points="nan,1;2,2;3,3"></polygon>', "expected coordinates in pixels of the image"),
        ('<polygon label="a" points="1e300,1;2,2;3,3"></polygon>', "expected coordinates in pixels of the image"),
        ('<polygon label="a"></polygon>', "expected an object with the field 'points'"),
        ('<polygon points="1,1;2,2;3,3"></polygon>', "expected an object with the field 'label'"),
        ('<box label="a" xtl="1" ytl="1" xbr="x" ybr="2"></box>', "box 0.xbr: found 'x', expected numbers of pixels"),
        ('<blob label="a"></blob>', "image 0.blob 0: found {'label': 'a'}, expected a polygon, box, ellipse, mask"),
        ('<mask label="a" rle="1, 2" left="0" top="0" width="2" height="2"></mask>', "add up to 2 x 2 = 4"),
        ('<mask label="a" rle="-1, 5" left="0" top="0" width="2" height="2"></mask>', "add up to 2 x 2 = 4"),
        (
            '<mask label="a" rle="x" left="0" top="0" width="2" height="2"></mask>',
            "expected whole numbers, separated by",
        ),
        (
            '<mask label="a" rle="4" left="15" top="0" width="2" height="2"></mask>',
            "expected a box inside of the image",
        ),
        (
            '<mask label="a" rle="4" left="-1" top="0" width="2" height="2"></mask>',
            "expected a box inside of the image",
        ),
        (
            '<mask label="a" rle="4" left="0" top="0" width="1e9" height="2"></mask>',
            "width: found '1e9', expected a whole",
        ),
    ],
)
def test_a_wrong_shape_is_said_when_it_is_asked_for(read: Callable[..., list[Any]], shape: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(shape)
    assert message in str(caught.value) and "annotations.xml: image 0." in str(caught.value)


@pytest.mark.parametrize(
    ("width", "message"), [("0", "found 0"), ("99999999999", "found 99999999999"), ("x", "found 'x'")]
)
def test_sizes_are_bounded(tree: Any, samples: ModuleType, width: str, message: str) -> None:
    tree.image("images/a.png")
    tree.text("annotations.xml", samples.cvat_file(f'<image name="a.png" width="{width}" height="12"></image>'))
    (entry,) = get_format("cvat").scan(tree.root, ReadOptions())
    with pytest.raises(DataError, match=f"width: {message}"):
        entry.annotation.instances((16, 12), 128)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
FOREIGN = '<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("declared", [BOMB, FOREIGN, '<!DOCTYPE x SYSTEM "http://localhost/x.dtd">', "<!DOCTYPE x>"])
def test_documents_that_declare_anything_are_refused(tree: Any, samples: ModuleType, declared: str) -> None:
    tree.image("images/a.png")
    tree.text("annotations.xml", samples.cvat_file(samples.cvat_image("a.png"), root=declared))
    with pytest.raises(UnsafeFileError, match=r"annotations\.xml: declares entities or a document type"):
        get_format("cvat").scan(tree.root, ReadOptions())


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../../a.png"])
def test_no_image_outside_of_the_folder_is_read(tree: Any, samples: ModuleType, name: str) -> None:
    tree.image("images/a.png")
    tree.text("annotations.xml", samples.cvat_file(samples.cvat_image(name)))
    with pytest.raises(UnsafeFileError, match=r"annotations\.xml: image 0\.name: .* leads out of the folder"):
        get_format("cvat").scan(tree.root, ReadOptions())


def test_videos_damage_and_doubles(tree: Any, samples: ModuleType) -> None:
    tree.image("images/a.png")
    track = '<track id="0" label="a"><box frame="0" outside="0" occluded="0" keyframe="1"></box></track>'
    image = samples.cvat_image("a.png")
    for text, message in (
        (samples.cvat_file(track), "holds tracks of a video, expected images"),
        (samples.cvat_file(image)[:-20], r"annotations\.xml: cannot be read as XML"),
        (samples.cvat_file(image).replace("utf-8", "klingon"), "cannot be read as XML"),
        (samples.cvat_file(image, image), "image 1.name: found 'a.png', expected each image once"),
        (samples.cvat_file('<image width="1" height="1"></image>'), "expected an object with the field 'name'"),
    ):
        tree.text("annotations.xml", text)
        with pytest.raises(DataError, match=message):
            get_format("cvat").scan(tree.root, ReadOptions())


def test_a_listed_image_that_is_missing(tree: Any, samples: ModuleType) -> None:
    tree.image("images/a.png")
    images = [samples.cvat_image(name, samples.CVAT_SHAPES[0]) for name in ("a.png", "lost.png")]
    tree.text("annotations.xml", samples.cvat_file(*images))
    lost = [entry for entry in get_format("cvat").scan(tree.root, ReadOptions()) if not entry.image.exists()]
    assert [entry.image.name for entry in lost] == ["lost.png"]


def test_other_xml_files(tree: Any) -> None:
    tree.image("a.png")
    tree.text("Annotations/a.xml", "<annotation><filename>a.png</filename></annotation>")
    assert not get_format("cvat").matches(tree.root)
    with pytest.raises(LayoutError, match=r"expected annotations\.xml"):
        get_format("cvat").scan(tree.root, ReadOptions())
