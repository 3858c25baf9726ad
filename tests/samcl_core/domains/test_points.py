"""Points come from the mask alone; the published sampling is repeated draw for draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samcl_core.domains.points import (
    FRAME_PX,
    box_of,
    parse_points,
    read_boxes,
    read_points,
    reference_points,
    sample_points,
    write_boxes,
    write_points,
)
from samcl_core.errors import DataError, PromptError

NAMES = ("Kvasir", "ISTD", "cod", "synthetic")


def _golden_mask(recorded: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.unpackbits(recorded[f"{name}_mask_packed"]).reshape(FRAME_PX, FRAME_PX)


@pytest.fixture(scope="module")
def recorded(golden: Callable[[str], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return golden("points")


@pytest.mark.parametrize("name", NAMES)
def test_reference_points_equal_the_published_code(recorded: dict[str, np.ndarray], name: str, parity: Any) -> None:
    mask = _golden_mask(recorded, name)
    for seed in (0, 1234, 20240607):
        points, labels = reference_points(mask, 3, np.random.RandomState(seed))
        parity("point sampling: points", "both", points, recorded[f"{name}_seed{seed}_points"])
        parity("point sampling: labels", "both", labels, recorded[f"{name}_seed{seed}_labels"])
        assert (points.dtype, labels.dtype) == (np.float32, np.int32)
        point, label = reference_points(mask, 1, np.random.RandomState(seed))
        parity("point sampling: points", "both", point, recorded[f"{name}_seed{seed}_one_point"])
        parity("point sampling: labels", "both", label, recorded[f"{name}_seed{seed}_one_label"])
    stream = np.random.RandomState(7)
    calls = np.stack([reference_points(mask, 3, stream)[0] for _ in range(3)])
    parity("point sampling: points", "both", calls, recorded[f"{name}_seed7_three_calls"])


def test_reference_points_of_an_empty_mask() -> None:
    empty = np.zeros((FRAME_PX, FRAME_PX), dtype=bool)
    with pytest.raises(PromptError, match="no foreground to draw 3 points"):
        reference_points(empty, 3, np.random.RandomState(0))
    point, label = reference_points(empty, 1, np.random.RandomState(0))
    assert point.shape == (1, 2)
    assert label.tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 3000),
    num_points=st.integers(1, 12),
    num_background=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_points_are_pixel_centres_on_their_side(
    height: int, width: int, num_points: int, num_background: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    mask.flat[seed % mask.size] = True
    points, labels = sample_points(mask, num_points, num_background, key="k", seed=seed)
    assert labels.tolist() == [1] * num_points + [0] * (0 if mask.all() else num_background)
    assert ((points >= 0) & (points < FRAME_PX)).all()
    pixels = points * [width / FRAME_PX, height / FRAME_PX]
    columns, rows = np.floor(pixels).astype(int).T
    assert (mask[rows, columns] == (labels == 1)).all()
    np.testing.assert_allclose(pixels - np.floor(pixels), 0.5, atol=1e-6)


def test_points_of_one_pixel_are_known() -> None:
    mask = np.zeros((512, 2048), dtype=bool)
    mask[3, 5] = True
    points, labels = sample_points(mask, 2, key="any", seed=1)
    assert points.tolist() == [[2.75, 7.0], [2.75, 7.0]]
    assert labels.tolist() == [1, 1]


def test_points_depend_on_key_and_seed_and_grow_at_the_end() -> None:
    mask = np.ones((64, 64), dtype=bool)
    three = sample_points(mask, 3, key="a", seed=0)[0]
    np.testing.assert_array_equal(three, sample_points(mask, 3, key="a", seed=0)[0])
    np.testing.assert_array_equal(three, sample_points(mask, 5, key="a", seed=0)[0][:3])
    assert (three != sample_points(mask, 3, key="b", seed=0)[0]).any()
    assert (three != sample_points(mask, 3, key="a", seed=1)[0]).any()


def test_points_never_change_between_versions() -> None:
    """Written down once: other numbers would silently change every data set's prompts."""
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:8, 3:9] = True
    points, _ = sample_points(mask, 2, 1, key="0" * 64, seed=0)
    assert np.floor(points * 10 / FRAME_PX).astype(int).tolist() == [[3, 2], [3, 5], [1, 7]]


def test_points_do_not_repeat_while_there_are_enough_pixels() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, :4] = True
    four = sample_points(mask, 4, key="k", seed=3)[0]
    assert len({tuple(point) for point in four.tolist()}) == 4
    nine = sample_points(mask, 9, key="k", seed=3)[0]
    assert len({tuple(point) for point in nine.tolist()}) == 4


def test_points_cover_the_mask_evenly() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:12] = True
    points = np.concatenate([sample_points(mask, 3, key=str(key), seed=0)[0] for key in range(400)])
    np.testing.assert_allclose(points.mean(axis=0), FRAME_PX / 2, atol=15)
    assert points.min() == 4.5 * 64
    assert points.max() == 11.5 * 64


def test_an_empty_mask_has_points_of_the_background_and_no_box() -> None:
    empty = np.zeros((5, 7), dtype=bool)
    points, labels = sample_points(empty, 3, key="k", seed=0)
    assert labels.tolist() == [0, 0, 0] and len(np.unique(points, axis=0)) == 3
    assert sample_points(empty, 2, 4, key="k", seed=0)[1].tolist() == [0, 0, 0, 0]
    with pytest.raises(PromptError, match="7x5 pixels is empty"):
        box_of(empty)


def test_box_is_the_outer_edge() -> None:
    mask = np.zeros((512, 256), dtype=bool)
    mask[10:20, 30] = True
    assert box_of(mask) == (120.0, 20.0, 124.0, 40.0)
    assert box_of(np.ones((3, 5), dtype=bool)) == (0.0, 0.0, 1024.0, 1024.0)


def test_points_json_has_the_published_form(tmp_path: Path) -> None:
    points = {"b.png": (((1.5, 2.0),), (1,)), "a.png": (((3.0, 4.0), (5.0, 6.25)), (1, 0))}
    write_points(tmp_path / "points.json", points)
    assert json.loads((tmp_path / "points.json").read_text()) == {
        "a.png": [[[3.0, 4.0], [5.0, 6.25]], [1, 0]],
        "b.png": [[[1.5, 2.0]], [1]],
    }
    assert read_points(tmp_path / "points.json") == points
    write_points(tmp_path / "again.json", dict(reversed(points.items())))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "points.json").read_bytes()
    write_points(tmp_path / "empty.json", {})
    assert read_points(tmp_path / "empty.json") == {}


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("text", "'text'"),
        ([[[1, 2]]], r"\[\[\[1, 2\]\]\]"),
        ([[], []], "0 and 0"),
        ([[[1, 2]], [1, 1]], "1 and 2"),
        ([[[1, 1024]], [1]], r"\[1, 1024\]"),
        ([[[-1, 2]], [1]], r"\[-1, 2\]"),
        ([[[float("nan"), 2]], [1]], "nan"),
        ([[[1, 2, 3]], [1]], r"\[1, 2, 3\]"),
        ([[["1", 2]], [1]], r"\['1', 2\]"),
        ([[[1, 2]], [2]], "found 2"),
        ([[[1, 2]], [True]], "found True"),
        ([[[1, 2]], [None]], "found None"),
    ],
)
def test_entries_of_another_form_are_refused(tmp_path: Path, entry: object, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        parse_points(entry)
    (tmp_path / "points.json").write_text(json.dumps({"good.png": [[[1, 2]], [1]], "bad.png": entry}))
    with pytest.raises(DataError, match=r"1 of 2 entries cannot be used\n  - bad\.png"):
        read_points(tmp_path / "points.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
def test_files_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(DataError, match=r"points\.json"):
        read_points(tmp_path / "points.json")


def test_boxes_round_trip_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    write_boxes(path, {"a.png": (0.0, 1.0, 1024.0, 3.5)})
    assert read_boxes(path) == {"a.png": (0.0, 1.0, 1024.0, 3.5)}
    for wrong in ([1, 2, 3], [0, 0, 2000, 5], [5, 5, 4, 6], ["0", 0, 1, 1]):
        path.write_text(json.dumps({"a.png": wrong}))
        with pytest.raises(DataError, match=r"a\.png"):
            read_boxes(path)
