"""Pictures: the right pixels change, the same input gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from samcl_core.errors import DataError
from samcl_core.evaluation.pictures import SheetRow, comparison_sheet, r_matrix_heatmap
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
