"""Layouts are recognised, pairs are found by name, and nothing is dropped silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from samcl_core.domains.formats import (
    ReadOptions,
    SourceImage,
    detect_format,
    format_names,
    get_format,
    register_format,
    unwrap,
)
from samcl_core.domains.formats.base import bare_stem, pair_files, split_of
from samcl_core.errors import DataError, LayoutError, UsageError


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def _scan(root: Path) -> tuple[str, set[tuple[str | None, str, str]]]:
    found = detect_format(root)
    return found.name, {_row(pair, root) for pair in found.scan(root, ReadOptions())}


def _row(pair: SourceImage, root: Path) -> tuple[str | None, str, str]:
    image = pair.image.relative_to(root).as_posix() if pair.image else "-"
    mask = _mask(pair)
    return pair.split, image, mask.relative_to(root).as_posix() if mask else "-"


def _mask(pair: SourceImage) -> Path | None:
    """The mask file; each image of these trees has at most one."""
    if pair.annotation is None:
        return None
    (mask,) = pair.annotation.files
    return mask


def test_the_published_layout(tmp_path: Path) -> None:
    _touch(tmp_path, "train/images/a.jpg", "train/masks/a.jpg", "test/images/b.png", "test/masks/b.png")
    (tmp_path / "test/masks/points.json").write_text('{"b.png": [[[1, 2]], [1]]}')
    assert _scan(tmp_path) == (
        "samcl",
        {
            ("train", "train/images/a.jpg", "train/masks/a.jpg"),
            ("test", "test/images/b.png", "test/masks/b.png"),
        },
    )
    points = {pair.split: pair.points for pair in get_format("samcl").scan(tmp_path, ReadOptions())}
    assert points == {"train": None, "test": [[[1, 2]], [1]]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["images/a.jpg", "masks/a.png"], {(None, "images/a.jpg", "masks/a.png")}),
        (["Imgs/a.jpg", "GT/a.png"], {(None, "Imgs/a.jpg", "GT/a.png")}),
        (["images/a.jpg", "labels/a.txt", "masks/a_mask.png"], {(None, "images/a.jpg", "masks/a_mask.png")}),
        (
            ["images/train/a.jpg", "masks/train/a.png", "images/val/b.jpg", "masks/val/b.png"],
            {("train", "images/train/a.jpg", "masks/train/a.png"), ("test", "images/val/b.jpg", "masks/val/b.png")},
        ),
        (
            [f"{split}/{kind}/{split}.png" for split in ("train", "valid", "test") for kind in ("images", "masks")],
            {
                ("train", "train/images/train.png", "train/masks/train.png"),
                ("val", "valid/images/valid.png", "valid/masks/valid.png"),
                ("test", "test/images/test.png", "test/masks/test.png"),
            },
        ),
        (["a.jpg", "a_mask.png", "b.jpg", "b-gt.png"], {(None, "a.jpg", "a_mask.png"), (None, "b.jpg", "b-gt.png")}),
        (["a.jpg", "a.png", "note.txt"], {(None, "a.jpg", "a.png")}),
        (
            ["train/a.jpg", "train/a_segmentation.png", "test/b.jpg", "test/b_segmentation.png"],
            {
                ("train", "train/a.jpg", "train/a_segmentation.png"),
                ("test", "test/b.jpg", "test/b_segmentation.png"),
            },
        ),
    ],
    ids=["flat", "usual names", "labels beside", "split inside", "validation", "mixed", "jpg png", "mixed splits"],
)
def test_plain_folders(tmp_path: Path, files: list[str], expected: set[tuple[str | None, str, str]]) -> None:
    assert _scan(_touch(tmp_path, *files)) == ("folders", expected)


def test_partners_that_are_missing_are_reported(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/b.png", "masks/c.png", "images/.DS_Store", "images/x.txt")
    assert _scan(tmp_path)[1] == {
        (None, "images/a.jpg", "-"),
        (None, "images/b.jpg", "masks/b.png"),
        (None, "-", "masks/c.png"),
    }


def test_the_published_layout_with_a_validation_split(tmp_path: Path) -> None:
    _touch(tmp_path, "train/images/a.png", "train/masks/a.png", "val/images/b.png", "val/masks/b.png")
    pairs = {("train", "train/images/a.png", "train/masks/a.png"), ("test", "val/images/b.png", "val/masks/b.png")}
    assert _scan(tmp_path) == ("samcl", pairs)
    _touch(tmp_path, "test/images/c.png", "test/masks/c.png")
    assert _scan(tmp_path) == (
        "samcl",
        {
            ("train", "train/images/a.png", "train/masks/a.png"),
            ("val", "val/images/b.png", "val/masks/b.png"),
            ("test", "test/images/c.png", "test/masks/c.png"),
        },
    )


def test_a_published_split_without_masks_is_reported_not_ignored(tmp_path: Path) -> None:
    _touch(tmp_path, "train/images/a.jpg", "train/masks/a.jpg", "test/images/b.jpg")
    assert ("test", "test/images/b.jpg", "-") in _scan(tmp_path)[1]


def test_exact_names_win_over_stems() -> None:
    images = [Path("i/a.jpg"), Path("i/a.png"), Path("i/img_7.jpg")]
    masks = [Path("m/a.png"), Path("m/a_mask.png"), Path("m/mask_7.png")]
    pairs = {(pair.image, _mask(pair)) for pair in pair_files(images, masks, None)}
    assert pairs == {(images[1], masks[0]), (images[0], masks[1]), (images[2], masks[2])}


@pytest.mark.parametrize("name", ["x_mask.png", "x-GT.png", "mask_x.png", "x_segmentation.tif", "x.png"])
def test_bare_stem(name: str) -> None:
    assert bare_stem(name) == "x"


def test_validation_is_the_test_split_only_when_there_is_no_other() -> None:
    assert split_of("Val", ["train", "Val"]) == "test"
    assert split_of("valid", ["train", "valid", "Test"]) == "val"
    assert split_of("photos", []) is None


def test_lonely_outer_folders_are_taken_off(tmp_path: Path) -> None:
    _touch(tmp_path, "Kvasir/data/images/a.jpg", "Kvasir/data/masks/a.png", ".gitignore", "__MACOSX/junk")
    assert unwrap(tmp_path) == tmp_path / "Kvasir" / "data"
    _touch(tmp_path / "other", "train/images/a.jpg")
    assert unwrap(tmp_path / "other") == tmp_path / "other"


def test_an_unknown_layout_says_what_is_there_and_what_is_expected(tmp_path: Path) -> None:
    _touch(tmp_path, "photos/a.jpg", "readme.txt")
    with pytest.raises(LayoutError, match=r"Found: photos/, readme\.txt\. Expected one of") as caught:
        detect_format(tmp_path)
    assert all(f"- {name}:" in str(caught.value) for name in format_names())
    with pytest.raises(LayoutError, match="is not a folder"):
        detect_format(tmp_path / "readme.txt")
    for name in format_names():
        with pytest.raises(LayoutError, match="expected"):
            get_format(name).scan(_touch(tmp_path / "empty", "x/y.txt"), ReadOptions())


def test_points_of_the_source_must_be_json(tmp_path: Path) -> None:
    _touch(tmp_path, "train/images/a.jpg", "train/masks/a.jpg", "train/masks/points.json")
    with pytest.raises(DataError, match=r"points\.json: cannot be read as JSON"):
        get_format("samcl").scan(tmp_path, ReadOptions())


def test_names_are_registered_once() -> None:
    with pytest.raises(ValueError, match="'folders' is registered already"):
        register_format(get_format("folders"))
    with pytest.raises(UsageError, match=r"'paint' is unknown, expected auto or one of samcl, .*, folders"):
        get_format("paint")
