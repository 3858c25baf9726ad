"""Lists of classes in the forms that annotation tools and data sets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from samcl_core.domains.annotations import Code
from samcl_core.domains.formats.labelmaps import read_label_map
from samcl_core.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # https://docs.cvat.ai/docs/dataset_management/formats/format-smask
        (
            "labelmap.txt",
            "# label : color (RGB) : 'body' parts : actions\nbackground:0,128,0::\naeroplane:10,10,128::\n",
            {(10, 10, 128): "aeroplane"},
        ),
        # http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/
        (
            "label_colors.txt",
            "64 128 64\tAnimal\n0 0 0\tVoid\n192 0 128\tLane Markings Drivable\n",
            {(64, 128, 64): "Animal", (192, 0, 128): "Lane Markings Drivable"},
        ),
        (
            "label_colors.txt",
            "sky 128 128 128\nroad marking 1 2 3\n",
            {(128, 128, 128): "sky", (1, 2, 3): "road marking"},
        ),
        ("class_dict.csv", "name,r,g,b\nSky,128,128,128\nVoid,0,0,0\n", {(128, 128, 128): "Sky"}),
        ("class_dict.csv", "name, r, g, b\n unlabeled, 0, 0, 0\n tree, 51, 51, 0\n", {(51, 51, 0): "tree"}),
        ("class_dict.csv", "Class,Index\n\ncar,3\n", {3: "car"}),
        ("classes.txt", "\ufeffcat\r\ndog\r\n", {1: "cat", 2: "dog"}),
        ("classes.txt", "__ignore__\n_background_\ncat\n", {1: "cat"}),
        ("classes.txt", "cat\nbackground\ndog\n", {0: "cat", 2: "dog"}),
        ("classes.txt", "0 background\n17: big cat\n", {17: "big cat"}),
        ("classes.txt", "type 1\ntype 2\n", {1: "type 1", 2: "type 2"}),
        ("classes.txt", "polyp\n", "polyp"),
    ],
    ids=[
        "cvat",
        "camvid",
        "colour last",
        "table",
        "spaced table",
        "table of values",
        "names",
        "labelme",
        "background inside",
        "values",
        "numbers in names",
        "one class",
    ],
)
def test_forms(tmp_path: Path, name: str, content: str, expected: dict[Code, str] | str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_label_map(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labelmap.txt", "cat:1,2,3::\ndog\n", r"line 2 is 'dog', expected the form of 'cat:1,2,3::'"),
        ("labelmap.txt", "cat:1,2,300::\n", r"line 1 has the code '300', expected a number from 0 to 255"),
        ("labelmap.txt", "cat:1,2,3::\ndog:1,2,3::\n", r"\(1, 2, 3\) stands for several classes: cat, dog"),
        ("labelmap.txt", "background:0,0,0::\n", r"names no class besides the background"),
        ("classes.txt", "", r"names no class besides the background"),
        ("classes.txt", "1 cat\n2 dog\nmouse\n", r"line 3 is 'mouse', expected the form of '1 cat'"),
        ("classes.txt", "99999 cat\n1 dog\n", r"line 1 has the code '99999', expected a number from 0 to 65535"),
        ("class_dict.csv", "name,colour\ncat,red\n", r"the header is \['name', 'colour'\], expected name,r,g,b"),
        ("class_dict.csv", "name,r,g,b\ncat,1,2\n", r"line 2 is 'cat,1,2', expected 4 columns"),
        ("class_dict.csv", "name,r,g,b\ncat,1,2,x\n", r"line 2 has the code 'x', expected a number"),
        ("class_dict.csv", "", r"the header is \[\], expected"),
    ],
)
def test_errors_say_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_label_map(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "codes" in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read"):
        read_label_map(path)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(DataError, match="has 1048577 bytes, expected a short list of classes"):
        read_label_map(path)
