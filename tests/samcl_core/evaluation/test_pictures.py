"""Pictures: the right pixels change, the same input gives the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from samcl_core.errors import DataError
from samcl_core.evaluation.pictures import (
    SheetRow,
    comparison_sheet,
    overlay,
    r_matrix_heatmap,
    to_pixels,
    write_png,
)
from samcl_core.evaluation.rmatrix import COLUMNS

HEIGHT, WIDTH = 90, 120
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def disc(x: int, y: int, radius: int) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < radius**2)


MASK, TRUTH = disc(50, 45, 25), disc(62, 45, 25)


def frame(*domains: tuple[str, str], steps: int = 3, metric: str = "iou") -> pd.DataFrame:
    rows = [
        (step, name, metric, (0.3 + 0.1 * step + 0.05 * column) % 1, 10, role)
        for step in range(steps)
        for column, (name, role) in enumerate(domains)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


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


def row(**changes: Any) -> SheetRow:
    values = {
        "domain": "Kvasir",
        "image": GREY,
        "truth": TRUTH,
        "zero_shot": disc(20, 20, 10),
        "bank": MASK,
        "chosen": "Kvasir",
        "iou_zero_shot": 0.1,
        "iou_bank": 0.7,
        "points": [(62, 45)],
        "confidence": 0.93,
    }
    return SheetRow(**{**values, **changes})


def test_sheet_has_a_row_an_image_and_repeats_exactly() -> None:
    one, two = comparison_sheet([row()], tile_px=80), comparison_sheet([row(), row()], tile_px=80)
    assert one.shape[1] == two.shape[1] > 4 * 80 and one.dtype == np.uint8
    assert two.shape[0] - one.shape[0] == 60 + 40, "a picture of 80 x 60 and its caption"
    assert np.array_equal(one, comparison_sheet([row()], tile_px=80))
    assert comparison_sheet([row()], title="After step 1", tile_px=80).shape[0] > one.shape[0]


def test_sheet_shows_the_image_itself() -> None:
    sheet = comparison_sheet([row(points=())], tile_px=80)
    left = sheet[:, 14 : 14 + 80].reshape(-1, 3)
    assert (left == 128).all(axis=1).sum() == 60 * 80


def test_sheet_fits_portrait_images() -> None:
    turned = row(image=GREY.transpose(1, 0, 2), truth=TRUTH.T, zero_shot=MASK.T, bank=MASK.T, points=())
    assert comparison_sheet([turned], tile_px=80).shape[0] == comparison_sheet([row()], tile_px=80).shape[0] + 20


def test_sheet_errors() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        comparison_sheet([])
    with pytest.raises(ValueError, match=r"a mask of Kvasir is \(90, 119\), expected the image's \(90, 120\)"):
        comparison_sheet([row(bank=MASK[:, 1:])])


def test_heatmap_is_a_png_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    cells = frame(("Kvasir", "learn"), ("ISIC", "learn"), ("COCO", "natural"), ("Cells", "unseen"))
    r_matrix_heatmap(cells, "iou", tmp_path / "one.png", ["Kvasir", "ISIC"])
    r_matrix_heatmap(cells.sample(frac=1, random_state=0), "iou", tmp_path / "two.png", ["Kvasir", "ISIC"])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert "Software" not in image.info
        assert image.size[0] > image.size[1] > 200


def test_heatmap_grows_with_the_matrix(tmp_path: Path) -> None:
    names = [(f"Domain{k}", "learn") for k in range(8)]
    r_matrix_heatmap(frame(*names, steps=9), "iou", tmp_path / "large.png", [name for name, _ in names])
    r_matrix_heatmap(frame(*names[:1], steps=1), "iou", tmp_path / "small.png", ["Domain0"])
    large, small = size_of(tmp_path / "large.png"), size_of(tmp_path / "small.png")
    assert large[0] > small[0] and large[1] > small[1]


@pytest.mark.parametrize("metric", ["mae", "boundary_iou", "my_own"])
def test_heatmap_of_other_metrics_missing_cells_and_long_names(tmp_path: Path, metric: str) -> None:
    cells = frame(("A" * 64, "learn"), ("COCO", "natural"), metric=metric).drop(index=0)
    r_matrix_heatmap(cells, metric, tmp_path / "x.png", ["A" * 64])
    assert size_of(tmp_path / "x.png")[1] > 300


def test_heatmap_of_an_unknown_metric_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cell of metric 'dice'"):
        r_matrix_heatmap(frame(("A", "learn")), "dice", tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
