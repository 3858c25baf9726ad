"""Run lengths and outlines are what pycocotools makes of them; what is wrong with them is one error and never more."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from samcl_core.domains.annotations import Shape
from samcl_core.domains.formats.outlines import box_outline, ellipse_outline, united
from samcl_core.errors import DataError
from samcl_core.masks import MAX_PIXELS, mask_from_rle, mask_to_polygons, mask_to_rle, patch_to_rle, polygons_to_mask

few = settings(max_examples=50, deadline=None, derandomize=True)

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """(H, W) bool of 1 to 12 pixels a side, with a few large parts or many small ones."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    boxes = draw(
        st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(1, 8), st.integers(1, 8)), max_size=6)
    )
    mask = np.zeros((height, width), dtype=bool)
    for x, y, across, down in boxes:
        mask[y : y + down, x : x + across] ^= True
    return mask


def _reference(mask: Mask) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def _decoded(rle: dict[str, Any]) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        # pycocotools 2.0.11 calls numpy in a way that is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco.decode(rle)


@few
@given(masks())
def test_run_lengths_are_those_of_pycocotools(mask: Mask) -> None:
    ours, theirs = mask_to_rle(mask), _reference(mask)
    assert ours == {"size": list(theirs["size"]), "counts": theirs["counts"].decode()}
    assert (mask_from_rle(ours) == mask).all()
    assert (mask_from_rle(theirs) == _decoded(theirs)).all()
    assert json.loads(json.dumps(ours)) == ours


@few
@given(masks())
def test_plain_run_lengths_are_read_too(mask: Mask) -> None:
    flat = mask.ravel(order="F")
    runs, value = [0], False
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    assert (mask_from_rle({"size": list(mask.shape), "counts": runs}) == mask).all()


def test_long_runs_and_falling_ones() -> None:
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[:, 100], mask[500:, 101], mask[3, 500] = True, True, True
    assert mask_to_rle(mask)["counts"] == _reference(mask)["counts"].decode()
    assert (mask_from_rle(mask_to_rle(mask)) == mask).all()


@few
@given(masks(), st.integers(-15, 15), st.integers(-15, 15), st.integers(1, 14), st.integers(1, 14))
def test_a_patch_is_placed_in_its_image(patch: Mask, left: int, top: int, width: int, height: int) -> None:
    image = np.zeros((height, width), dtype=bool)
    for y, x in np.argwhere(patch).tolist():
        if 0 <= y + top < height and 0 <= x + left < width:
            image[y + top, x + left] = True
    rle = patch_to_rle(patch, left, top, width, height)
    assert (mask_from_rle(rle) == image).all()
    assert sum(rle["counts"]) == height * width


@few
@given(masks())
def test_outlines_drawn_again_are_the_same_pixels(mask: Mask) -> None:
    polygons = mask_to_polygons(mask)
    height, width = mask.shape
    assert (polygons_to_mask(polygons, width, height) == mask).all()
    corners = np.array([value for polygon in polygons for value in polygon])
    assert (corners == corners.round()).all()


def test_outlines_of_parts_holes_and_touching_corners() -> None:
    picture = ["####..#", "#..#.#.", "#.##...", "####..#", "......#"]
    mask = np.array([[letter == "#" for letter in row] for row in picture])
    polygons = mask_to_polygons(mask)
    # The ring with its hole, two pixels that touch at a corner, and two that share an edge.
    assert len(polygons) == 4
    assert polygons[1:] == [
        [6.0, 0.0, 7.0, 0.0, 7.0, 1.0, 6.0, 1.0],
        [5.0, 1.0, 6.0, 1.0, 6.0, 2.0, 5.0, 2.0],
        [6.0, 3.0, 7.0, 3.0, 7.0, 5.0, 6.0, 5.0],
    ]
    assert (polygons_to_mask(polygons, 7, 5) == mask).all()
    assert mask_to_polygons(np.zeros((3, 4), dtype=bool)) == []
    assert mask_to_polygons(np.ones((3, 4), dtype=bool)) == [[0.0, 0.0, 4.0, 0.0, 4.0, 3.0, 0.0, 3.0]]


@few
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-20, 40), st.floats(-20, 40)), min_size=3, max_size=8), min_size=1, max_size=3
    )
)
def test_polygons_are_drawn_as_pycocotools_draws_them(outlines: list[list[tuple[float, float]]]) -> None:
    polygons = [[value for point in outline for value in point] for outline in outlines]
    expected = _decoded(coco.merge(coco.frPyObjects(polygons, 17, 23)))
    assert (polygons_to_mask(polygons, 23, 17) == expected).all()
    assert polygons_to_mask([], 23, 17).sum() == 0


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(list)
counts = (
    st.text(max_size=12)
    | st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=20)
    | st.lists(st.integers(-3, 40), max_size=8)
    | st.lists(st.integers(), max_size=4)
    | st.binary(max_size=12)
)


@settings(few, max_examples=150)
@given(
    st.fixed_dictionaries({"size": sizes | anything, "counts": counts | anything})
    | st.dictionaries(st.text(), anything)
)
def test_run_lengths_that_are_wrong_are_one_error(rle: dict[str, Any]) -> None:
    try:
        mask = mask_from_rle(rle)
    except DataError as exc:
        assert exc.message
    else:
        assert mask.shape == tuple(rle["size"]) and mask.dtype == np.bool_


@few
@given(st.lists(st.lists(st.floats() | st.integers() | st.booleans(), max_size=9), max_size=3))
def test_outlines_that_are_wrong_are_one_error(polygons: list[list[float]]) -> None:
    try:
        mask = polygons_to_mask(polygons, 7, 5)
    except DataError as exc:
        assert exc.message
    else:
        assert mask.shape == (5, 7)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 3], "counts": [5]}, "add up to 5, expected 2 x 3 = 6"),
        ({"size": [2, 3], "counts": [-1, 7]}, "a run length is -1"),
        ({"size": [2, 3], "counts": "6P"}, "an end that COCO's encoding does not have"),
        ({"size": [2, 3], "counts": "PPPPPPPPP0"}, "a run length has 10 digits, expected at most 7"),
        ({"size": [2, 3], "counts": {"a": 1}}, "expected text or a list of whole numbers"),
        ({"size": [2, 3]}, "expected text or a list of whole numbers"),
        ({"size": [2, 3, 1], "counts": [6]}, r"expected \[height, width\]"),
        ({"size": [2.0, 3], "counts": [6]}, r"expected \[height, width\]"),
        ({"size": [MAX_PIXELS, 2], "counts": [2 * MAX_PIXELS]}, "of at most 89478485 pixels"),
    ],
)
def test_what_is_wrong_with_run_lengths_is_said(rle: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mask_from_rle(rle)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, 4, 4], "has 4 numbers, expected x, y of three or more points"),
        ([0, 0, 4, 4, 1, 1, 2], "has 7 numbers"),
        ([0, 0, 4, 4, 1, float("nan")], "has the coordinate nan"),
        ([0, 0, 4, 4, 1, -1e7], "has the coordinate -10000000.0, expected pixels of the image"),
        ([0, 0, 4, 4, 1, 10**400], "holds what is no number"),
        ([0, 0, 4, 4, 1, "x"], "holds what is no number"),
        # Its drawing would take gigabytes.
        ([0, 0, 1e6, 1e6] * 50, "pixels in length, expected at most 2000000 for one object"),
    ],
)
def test_what_is_wrong_with_an_outline_is_said(polygon: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        polygons_to_mask([polygon], 7, 5)


def test_shapes_of_tools_as_outlines() -> None:
    assert polygons_to_mask([box_outline(1, 2, 5, 4)], 8, 8).sum() == 8
    assert polygons_to_mask([box_outline(5, 4, 1, 2)], 8, 8)[2:4, 1:5].all()
    turned = polygons_to_mask([box_outline(1, 2, 5, 4, 90)], 8, 8)
    assert turned[1:5, 2:4].all() and turned.sum() == 8
    ellipse = polygons_to_mask([ellipse_outline(100, 60, 80, 40)], 200, 120)
    assert ellipse.sum() == pytest.approx(np.pi * 80 * 40, rel=0.005)
    assert len(ellipse_outline(0, 0, 1e6, 1e6)) == 2 * 4096


def test_parts_of_one_object_are_united() -> None:
    square, other = Shape("a", (box_outline(0, 0, 2, 2),)), Shape("a", (box_outline(4, 0, 6, 2),))
    drawn = Shape("a", rle=patch_to_rle(np.ones((2, 2), dtype=bool), 1, 1, 8, 8))
    assert united([(1, square), (2, square), (1, other)], None) == (
        Shape("a", square.polygons + other.polygons),
        square,
    )
    (one,) = united([(1, square), (1, drawn)], (8, 8))
    assert one.rle is not None and mask_from_rle(one.rle).sum() == 4 + 4 - 1
