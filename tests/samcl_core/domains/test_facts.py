"""Facts of pictures, masks and points, against numbers worked out by hand."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.facts import _parts, image_facts, mask_facts, point_facts
from samcl_core.domains.synthetic import draw

Grey = np.ndarray[Any, np.dtype[np.uint8]]


def blank(height: int = 256, width: int = 256) -> Grey:
    return np.zeros((height, width), np.uint8)


def line(width_px: int, to: tuple[int, int] = (230, 128), start: tuple[int, int] = (20, 128)) -> Any:
    """A line with flat ends, ``width_px`` wide."""
    grey = blank()
    if start[1] == to[1]:
        grey[start[1] : start[1] + width_px, start[0] : to[0]] = 1
    else:
        cv2.line(grey, start, to, 1, width_px)
    return grey > 0


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_a_line_is_as_wide_as_it_was_drawn(width: int) -> None:
    assert mask_facts(line(width), model_px=256).thickness_px == pytest.approx(width, abs=0.01)


@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("to", [(230, 230), (230, 90), (60, 240)])
def test_its_direction_hardly_matters(width: int, to: tuple[int, int]) -> None:
    mask = line(width, to, (20, 20))
    drawn = mask.sum() / (np.hypot(to[0] - 20, to[1] - 20) + width)  # what OpenCV drew is not quite as wide as said
    assert mask_facts(mask, model_px=256).thickness_px == pytest.approx(drawn, rel=0.12)


def test_thickness_is_that_of_the_picture_the_model_sees() -> None:
    thin = line(3)
    assert mask_facts(thin, model_px=1024).thickness_px == pytest.approx(4 * 3, abs=0.1)
    large = cv2.resize(thin.astype(np.uint8), (4096, 4096), interpolation=cv2.INTER_NEAREST) > 0
    assert mask_facts(large, model_px=1024).thickness_px == pytest.approx(4 * 3, rel=0.1)


def test_a_line_thinner_than_a_pixel_of_the_model_stays_one_part() -> None:
    grey = blank(2048, 2048)
    grey[1000:1001, 100:1900] = 1
    found = mask_facts(grey > 0, model_px=256)
    assert found.num_parts == 1
    assert found.thickness_px == pytest.approx(1 / 8, rel=0.2)


def test_squares_discs_and_rings() -> None:
    square = blank()
    square[10:50, 60:100] = 1
    assert mask_facts(square > 0, model_px=256).thickness_px == pytest.approx(40, abs=0.01)
    disc = cv2.circle(blank(), (128, 128), 30, 1, -1)
    assert 40 < mask_facts(disc > 0, model_px=256).thickness_px < 61
    ring = cv2.circle(blank(), (128, 128), 60, 1, 4)
    assert mask_facts(ring > 0, model_px=256).thickness_px == pytest.approx(4, abs=1.1)


def test_small_parts_do_not_matter_and_the_largest_always_does() -> None:
    mask = blank()
    mask[100:200, 100:200] = 1
    mask[10, 10:60] = 1
    found = mask_facts(mask > 0, model_px=256)
    assert (found.num_parts, found.thickness_px) == (2, 100)
    assert mask_facts(mask > 0, model_px=256, min_part_frac=0.001).thickness_px == 1
    specks = blank()
    specks[::8, ::8] = 1
    assert mask_facts(specks > 0, model_px=256).num_parts == 32 * 32
    assert mask_facts(specks > 0, model_px=256).thickness_px == 1


def test_parts_and_their_pixels_are_counted_without_labels() -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        mask = (rng.random(rng.integers(1, 40, 2)) < rng.random()).astype(np.uint8)
        if number % 2:
            mask = (cv2.GaussianBlur(rng.random((60, 60)), (0, 0), rng.uniform(0.6, 4)) > 0.5).astype(np.uint8)
        if mask.any():
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            assert sorted(part.area for part in _parts(mask)) == sorted(stats[1:, cv2.CC_STAT_AREA].tolist())


def test_specks_in_a_huge_mask_do_no_harm() -> None:
    mask = np.zeros((8, 40_000), bool)
    mask[0, 0] = mask[7, 39_999] = True
    found = mask_facts(mask, model_px=64)
    assert found.num_parts == 2 and found.thickness_px < 0.01


@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_masks(fill: int) -> None:
    found = mask_facts(np.full((20, 30), fill, bool))
    assert (found.foreground_frac, found.num_parts) == (fill, fill)
    assert (found.thickness_px > 0) == bool(fill)
    assert mask_facts(np.full((1, 1), fill, bool)).foreground_frac == fill


def as_jpeg(grey: Grey, quality: int) -> Grey:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_the_halo_of_a_jpeg_is_no_grey(quality: int) -> None:
    mask = draw("camouflage", size_px=256, seed=0, split="train", index=0)[1]
    grey = as_jpeg(mask * np.uint8(255), quality)
    assert len(np.unique(grey)) > 2
    assert mask_facts(grey >= 128, grey).grey_frac == 0


def test_an_antialiased_edge_is_no_grey() -> None:
    grey = cv2.GaussianBlur(cv2.circle(blank(), (128, 128), 60, 255, -1), (0, 0), 2)
    assert mask_facts(grey >= 128, grey).grey_frac == 0


@pytest.mark.parametrize("high", [1, 2, 200, 255])
def test_two_values_are_binary_whatever_they_are(high: int) -> None:
    grey = cv2.circle(blank(), (128, 128), 60, high, -1)
    found = mask_facts(grey > 0, grey)
    assert (found.grey_frac, found.max_grey) == (0, high)


def test_values_of_classes_and_soft_masks_are_grey() -> None:
    grey = blank()
    grey[20:100, 20:100], grey[120:220, 120:220] = 120, 240
    # Of 6,400 + 10,000 pixels the first square is neither black nor white.
    assert mask_facts(grey >= 128, grey).grey_frac == pytest.approx(6400 / 16400, abs=1e-4)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    assert mask_facts(ramp >= 128, ramp).grey_frac > 0.3


def test_contrast_of_a_picture() -> None:
    assert image_facts(np.full((9, 7, 3), 80, np.uint8)).contrast == 0
    half = np.zeros((64, 64, 3), np.uint8)
    half[:32] = 100
    assert image_facts(half).contrast == 50
    half[:32] = (0, 0, 30)
    assert image_facts(half).contrast == 15, "colour without brightness"
    noise = np.random.default_rng(0).integers(0, 2, (512, 512, 1), dtype=np.uint8) * np.full(3, 80, np.uint8)
    assert image_facts(noise).contrast == pytest.approx(40, abs=0.1), "fine texture, which no thumbnail shows"
    assert len(image_facts(half).thumbnail) == 32 * 32


def test_points_in_the_frame_of_1024() -> None:
    mask = np.zeros((100, 200), bool)
    mask[50:60, 100:120] = True
    inside, outside = [512.0 + 10, 512.0 + 20], [0.0, 0.0]
    assert point_facts(mask, [[inside, outside], [1, 0]]).misses_px == (0.0, 0.0)
    # To the pixel (100, 50), whose centre is (100.5, 50.5) / (200, 100) of the frame.
    far = np.hypot(100.5 / 200 * 1024, 50.5 / 100 * 1024)
    assert point_facts(mask, [[outside, inside], [1, 0]]).misses_px[0] == pytest.approx(far, abs=0.1)
    assert 0 < point_facts(mask, [[inside], [0]]).misses_px[0] < 60
    assert point_facts(np.ones((4, 4), bool), [[inside], [0]]).misses_px == (1024.0,)


@pytest.mark.parametrize("entry", [None, 3, [[[1, 2]], [1, 1]], [[[1, 2000]], [1]], [[["a", 2]], [1]], [[[1, 2]], [7]]])
def test_entries_that_hold_no_points(entry: object) -> None:
    found = point_facts(np.ones((4, 4), bool), entry)
    assert found.problem and found.misses_px == ()


def test_the_same_picture_gives_the_same_facts() -> None:
    image, mask = draw("crack", size_px=64, seed=0, split="train", index=0)
    assert image_facts(image) == image_facts(image.copy())
    assert mask_facts(mask) == mask_facts(np.asfortranarray(mask))


@pytest.mark.parametrize("value", [0, 255])
def test_what_is_known_of_a_clean_mask_is_what_would_be_measured(value: int) -> None:
    grey = np.zeros((40, 60), dtype=np.uint8)
    grey[5:20, 10:30] = value

    assert mask_facts(grey >= 128, grey, is_clean=True) == mask_facts(grey >= 128, grey)
