"""Masks, points and boxes over images: the right pixels change, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.drawing import draw_box, fit_within, overlay, to_pixels, write_picture, write_png

HEIGHT, WIDTH = 90, 120
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def disc(x: int, y: int, radius: int) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


MASK, TRUTH = disc(50, 45, 25), disc(62, 45, 25)


def test_points_of_the_frame_as_pixels() -> None:
    assert to_pixels([(0, 0), (512, 1023)], 640, 480).tolist() == [[0, 0], [320, 480 * 1023 / 1024]]
    assert to_pixels((), 640, 480).shape == (0, 2)


def test_overlay_tints_the_mask_and_leaves_the_rest() -> None:
    drawn = overlay(GREY, MASK, TRUTH)
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8 and (GREY == 128).all()
    red, green, _ = drawn[45, 50].tolist()
    assert red > 150 > green, "inside the mask: red tint"
    assert drawn[45, 80].tolist() == [128, 128, 128], "inside the truth alone: no tint"
    assert drawn[45, 86, 1] > drawn[45, 86, 0], "edge of the truth: green"
    assert (drawn[:5] == 128).all() and (drawn[:, 110:] == 128).all()


def test_overlay_of_the_truth_alone_is_green() -> None:
    red, green, _ = overlay(GREY, None, TRUTH)[45, 62].tolist()
    assert green > 128 > red


def test_overlay_without_anything_is_the_image() -> None:
    assert np.array_equal(overlay(GREY, None), GREY)
    assert np.array_equal(overlay(GREY, np.zeros_like(MASK), np.zeros_like(MASK)), GREY)


def test_points_are_drawn_by_label() -> None:
    drawn = overlay(GREY, None, None, [(20.7, 20.2), (60, 60), (100, 80)], [1, 0, -1])
    blue, orange = drawn[18, 22], drawn[58, 62]
    assert blue[2] > blue[0] and orange[0] > orange[2]
    assert (drawn[70:, 90:] == 128).all(), "padding points are not drawn"
    assert np.array_equal(overlay(GREY, None, None, [(20, 20)]), overlay(GREY, None, None, [(20, 20)], [1]))


def test_points_at_and_beyond_the_border_do_no_harm() -> None:
    assert overlay(GREY, MASK, TRUTH, [(0, 0), (WIDTH, HEIGHT), (-5, 2000)]).shape == GREY.shape


def test_overlay_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"mask is \(90, 119\), expected the image's \(90, 120\)"):
        overlay(GREY, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"truth is \(89, 120\)"):
        overlay(GREY, MASK, TRUTH[1:])
    with pytest.raises(ValueError, match="1 points have 2 labels"):
        overlay(GREY, MASK, None, [(1, 1)], [1, 0])


@pytest.mark.parametrize("size", [1, 8, 64])
def test_tiny_images_can_be_drawn(size: int) -> None:
    image = np.zeros((size, size, 3), np.uint8)
    assert overlay(image, np.ones((size, size), bool), None, [(0, 0)]).shape == image.shape


def test_read_only_images_can_be_drawn() -> None:
    image = GREY.copy()
    image.flags.writeable = False
    assert overlay(image, MASK).flags.writeable


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_write_png_comes_back_and_has_no_stamps(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    write_png(tmp_path / "a" / "x.png", pixels)
    with Image.open(tmp_path / "a" / "x.png") as image:
        assert np.array_equal(np.asarray(image), pixels) and image.info == {}


def test_a_box_is_drawn_on_its_outer_edges() -> None:
    drawn = GREY.copy()
    draw_box(drawn, (20.0, 10.0, 60.5, 40.0))
    yellow = (drawn[..., 0] > 200) & (drawn[..., 2] < 60)
    rows, columns = np.flatnonzero(yellow.any(axis=1)), np.flatnonzero(yellow.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 39, 20, 60)
    assert (drawn[15:35, 25:55] == 128).all() and (drawn[:5] == 128).all()


@pytest.mark.parametrize(("shape", "expected"), [((90, 120), (30, 40)), ((120, 90), (40, 30)), ((10, 20), (20, 40))])
def test_the_long_side_fits(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image, mask = fit_within(np.zeros((*shape, 3), np.uint8), np.ones(shape, bool), 40)
    assert image.shape[:2] == expected and mask is not None and mask.shape == expected and mask.all()
    assert fit_within(np.zeros((*shape, 3), np.uint8), None, 40)[1] is None


def test_a_mask_of_another_size_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"the mask is \(5, 4\), expected the image's \(4, 5\)"):
        fit_within(np.zeros((4, 5, 3), np.uint8), np.ones((5, 4), bool), 40)


@pytest.mark.parametrize(("name", "kind"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.webp", "WEBP")])
def test_a_picture_is_what_its_suffix_says(tmp_path: Path, name: str, kind: str) -> None:
    write_picture(tmp_path / name, GREY)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (WIDTH, HEIGHT))


@pytest.mark.parametrize("name", ["x.unknown", "x", "x.svg"])
def test_no_picture_is_written_under_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no picture"):
        write_picture(tmp_path / name, GREY)
    assert list(tmp_path.iterdir()) == []
