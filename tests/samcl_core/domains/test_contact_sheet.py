"""Contact sheets: the chosen samples, where they should be, drawn over their own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samcl_core.domains.contact_sheet import contact_sheet, pick_samples
from samcl_core.domains.images import save_png
from samcl_core.domains.layout import Sample


def sample(folder: Path, name: str, **changes: Any) -> Sample:
    """A grey picture, twice as wide as high, with a rectangle as its mask."""
    mask = np.zeros((60, 120), bool)
    mask[20:40, 30:60] = True
    image, mask_file = folder / f"{name}.png", folder / f"{name}_mask.png"
    save_png(image, np.full((60, 120, 3), 128, np.uint8))
    save_png(mask_file, mask)
    values: dict[str, Any] = {"points": ((384.0, 512.0), (900.0, 100.0)), "labels": (1, 0)}
    values |= {"image_sha256": "", "mask_sha256": "", "width": 120, "height": 60}
    return Sample(**{"id": f"train/images/{name}.png", "image": image, "mask": mask_file, **values, **changes})


def is_yellow(sheet: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((sheet[..., 0] > 200) & (sheet[..., 1] > 200) & (sheet[..., 2] < 90))


def test_masks_boxes_and_points_are_drawn(tmp_path: Path) -> None:
    sheet = contact_sheet([sample(tmp_path, "a")], tile_px=120)
    tile = sheet[12 + 60 : 12 + 120, 12 : 12 + 120]
    assert tile[30, 36, 1] > 135 > tile[30, 36, 0], "the mask is tinted green"
    assert tile[50, 100].tolist() == [128, 128, 128]
    rows, columns = np.nonzero(is_yellow(tile))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 30, 59), "the box of the mask"
    assert tile[30, 47, 2] > 200 and tile[30, 47, 0] < 120, "a foreground point, blue, at 384 / 1024 of the width"
    red, _, blue = tile[6, 107].tolist()
    assert red > 200 > blue, "a background point, orange"


def test_a_box_of_the_domain_is_drawn_in_place_of_the_masks(tmp_path: Path) -> None:
    sheet = contact_sheet([sample(tmp_path, "a", box=(0.0, 0.0, 512.0, 1024.0), points=(), labels=())], tile_px=120)
    _, columns = np.nonzero(is_yellow(sheet[72:132, 12:132]))
    assert (columns.min(), columns.max()) == (0, 59)


def test_samples_stand_in_rows(tmp_path: Path) -> None:
    samples = [sample(tmp_path, f"{name}\n\u202e" * 20 if name == "b" else name) for name in "ab"] * 3
    calls: list[int] = []
    sheet = contact_sheet(
        samples, title="T", columns=4, tile_px=50, progress=lambda what, done, total: calls.append(done)
    )
    assert sheet.shape == (40 + 2 * (50 + 34 + 12), 12 + 4 * 62, 3) and calls == [1, 2, 3, 4, 5, 6]
    assert (sheet[-80:, -100:] == 255).all(), "the second row has two pictures"
    assert np.array_equal(sheet, contact_sheet(samples, title="T", columns=4, tile_px=50))
    assert contact_sheet(samples * 3, tile_px=50).shape == (12 + 4 * 96, 12 + 5 * 62, 3), "18 samples: 5 in a row"
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])


def test_another_seed_picks_other_samples(tmp_path: Path) -> None:
    samples = [sample(tmp_path, f"{index:02d}") for index in range(20)]
    chosen = pick_samples(samples, 5, 0)
    assert chosen == sorted(chosen, key=lambda one: one.id) and len(chosen) == 5
    assert pick_samples(samples[::-1], 5, 0) == chosen != pick_samples(samples, 5, 1)
    assert pick_samples(samples, 99, 0) == samples
    assert set(chosen) < set(pick_samples(samples, 6, 0)), "one more keeps the others"
