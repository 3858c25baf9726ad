"""Masks as run lengths and polygons, and back (the COCO conventions)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.errors import DataError

__all__ = ["MAX_PIXELS", "mask_from_rle", "mask_to_polygons", "mask_to_rle", "patch_to_rle", "polygons_to_mask"]

Mask = NDArray[np.bool_]

# COCO's LEB128 variant (cocoapi maskApi.c, rleToString): 5 bits a character from "0" on, the sixth says "more follow".
# Read here and not by pycocotools: its C code trusts the counts and writes past the end of the mask.
_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16
_MAX_GROUPS = 7
"""No number needs more: 35 bits are more than any image has pixels."""
_MAX_COORDINATE = 1e6
_MAX_LENGTH = 2e6
"""Pixels along all outlines of an object: pycocotools takes about 100 bytes for each and never asks if it got them."""

# Steps along pixel edges with the foreground on the right hand: to the right, down, to the left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))

MAX_PIXELS = 89_478_485
"""Larger masks are refused before they are made (as larger images are)."""


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """(H, W) bool as COCO RLE: ``{"size": [H, W], "counts": text}``, as ``pycocotools.mask`` reads and writes it."""
    runs = _runs_of(np.asarray(mask, dtype=bool))
    differences = (run - runs[at - 2] if at > 2 else run for at, run in enumerate(runs))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(_encoded(value) for value in differences)}


def patch_to_rle(patch: Mask, left: int, top: int, width: int, height: int) -> dict[str, Any]:
    """A (h, w) bool patch of an image of ``width`` x ``height`` pixels as COCO's plain run lengths of the whole image.

    The patch's upper left pixel is at (``left``, ``top``); what lies outside of the image is cut.
    """
    kept = patch[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    left, top = max(left, 0), max(top, 0)
    if not kept.size:
        return {"size": [height, width], "counts": [height * width]}
    columns = np.zeros((height, kept.shape[1]), dtype=bool)
    columns[top : top + kept.shape[0]] = kept
    runs = _runs_of(columns)
    runs[0] += left * height
    behind = (width - left - kept.shape[1]) * height
    if len(runs) % 2:
        runs[-1] += behind
    elif behind:
        runs.append(behind)
    return {"size": [height, width], "counts": runs}


def mask_from_rle(rle: Mapping[str, Any]) -> Mask:
    """The (H, W) bool mask of COCO run lengths, compressed (text) or plain (a list of numbers).

    Raises:
        DataError: not run lengths, of an image larger than ``MAX_PIXELS``, or they do not fill the size.
    """
    height, width = _size(rle.get("size"))
    runs = _runs(rle.get("counts"))
    if (runs < 0).any():
        raise DataError(f"a run length is {runs.min()}, expected a number of pixels")
    if runs.sum() != height * width:
        raise DataError(f"run lengths add up to {runs.sum()}, expected {height} x {width} = {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """Outlines of a (H, W) bool mask along pixel edges, ``x0, y0, x1, y1, ...``: one for each part (4-connected).

    A hole is cut into the outline around it by a seam of no width. Drawn again by ``polygons_to_mask``, the outlines of
    any mask are the same pixels.
    """
    parts: dict[int, list[list[tuple[int, int]]]] = {}
    for part, outline in _outlines(np.asarray(mask, dtype=bool)):
        parts.setdefault(part, []).append(outline)
    polygons = []
    for around, *holes in parts.values():
        seams: dict[int, list[tuple[int, int]]] = {}
        for hole in holes:
            at = int(np.abs(np.array(around) - hole[0]).sum(axis=1).argmin())
            seams.setdefault(at, []).extend([around[at], *hole, hole[0]])
        points = (point for at, corner in enumerate(around) for point in [*seams.get(at, ()), corner])
        polygons.append([float(value) for point in points for value in point])
    return polygons


def polygons_to_mask(polygons: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The (H, W) bool mask of outlines ``x0, y0, x1, y1, ...`` in pixels, united; outside of the frame they are cut.

    Drawn as COCO draws (``pycocotools``).

    Raises:
        DataError: an outline has fewer than three points, half a point, or numbers that are none.
    """
    from pycocotools import mask as coco

    outlines = [_outline(polygon) for polygon in polygons]
    length = sum(float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) for points in outlines)
    if length > _MAX_LENGTH:
        raise DataError(f"outlines of {length:.0f} pixels in length, expected at most {_MAX_LENGTH:.0f} for one object")
    if not outlines:
        return np.zeros((height, width), dtype=bool)
    parts = coco.frPyObjects([points.ravel().tolist() for points in outlines], height, width)
    # Not decoded by pycocotools: it calls numpy in a way that is deprecated.
    return mask_from_rle(coco.merge(parts))


def _outline(polygon: Sequence[float]) -> NDArray[np.float64]:
    """(N, 2) points."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise DataError(f"an outline has {len(polygon)} numbers, expected x, y of three or more points")
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise DataError("an outline holds what is no number, expected x, y of three or more points") from None
    if not (np.abs(points) <= _MAX_COORDINATE).all():
        worst = max(points.ravel().tolist(), key=lambda value: abs(value) if value == value else np.inf)
        raise DataError(f"an outline has the coordinate {worst}, expected pixels of the image")
    return points


def _outlines(mask: Mask) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(number of its part, corners) of each closed way along pixel edges; a part's outer one comes first."""
    import cv2

    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    framed = np.pad(mask, 1)
    below, above = framed[1:, 1:-1], framed[:-1, 1:-1]
    behind, before = framed[1:-1, 1:], framed[1:-1, :-1]
    ways: dict[tuple[int, int], list[int]] = {}
    edges = ((below & ~above, 0, 0), (behind < before, 0, 0), (below < above, 1, 0), (behind & ~before, 0, 1))
    for direction, (found, right, down) in enumerate(edges):
        for y, x in np.argwhere(found).tolist():
            ways.setdefault((x + right, y + down), []).append(direction)
    for y, x in np.argwhere(edges[0][0]).tolist():
        if 0 in ways.get((x, y), ()):
            yield int(parts[y, x]), _walk(ways, (x, y))


def _walk(ways: dict[tuple[int, int], list[int]], start: tuple[int, int]) -> list[tuple[int, int]]:
    """The corners of the way that leaves ``start`` to the right and comes back to it; its steps are taken out."""
    corners, at, direction = [start], start, 0
    while True:
        at = at[0] + _STEPS[direction][0], at[1] + _STEPS[direction][1]
        # To the right first: where two pixels touch at a corner alone, they belong to two parts.
        turn = next(way % 4 for way in (direction + 1, direction, direction + 3) if way % 4 in ways[at])
        ways[at].remove(turn)
        if at == start and turn == 0:
            return corners
        if turn != direction:
            corners.append(at)
        direction = turn


def _runs_of(mask: Mask) -> list[int]:
    """Lengths of the runs down the columns, background first."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist() if flat.size else []
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return runs


def _size(found: object) -> tuple[int, int]:
    if isinstance(found, Sequence) and len(found) == 2 and all(type(side) is int and side > 0 for side in found):
        height, width = found
        if height * width <= MAX_PIXELS:
            return height, width
    raise DataError(f"run lengths of size {found!r}, expected [height, width] of at most {MAX_PIXELS} pixels")


def _runs(counts: object) -> NDArray[np.int64]:
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes):
        runs = _decoded(np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - _FIRST)
        # From the fourth on each is the difference to the one before the last.
        runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
        return runs
    if isinstance(counts, Sequence) and all(type(run) is int and abs(run) <= MAX_PIXELS for run in counts):
        return np.array(counts, dtype=np.int64)
    raise DataError(f"run lengths are {_short(counts)}, expected text or a list of whole numbers")


def _encoded(value: int) -> str:
    text = ""
    while True:
        part = value & (_MORE - 1)
        value >>= _BITS
        # The last group's highest bit is the sign, so a positive number may need a group more.
        is_last = value == (-1 if part & _SIGN else 0)
        text += chr(_FIRST + (part if is_last else part | _MORE))
        if is_last:
            return text


def _decoded(parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of their groups: 5 bits each, the lowest first, the last one's highest bit is the sign."""
    is_last = (parts & _MORE) == 0
    if len(parts) and (parts.min() < 0 or parts.max() >= 2 * _MORE or not is_last[-1]):
        raise DataError("run lengths hold characters or an end that COCO's encoding does not have")
    ends = np.flatnonzero(is_last)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max(initial=0) > _MAX_GROUPS:
        raise DataError(f"a run length has {lengths.max()} digits, expected at most {_MAX_GROUPS}")
    place = np.arange(len(parts)) - np.repeat(ends - lengths + 1, lengths)
    values = np.add.reduceat((parts & (_MORE - 1)) << _BITS * place, ends - lengths + 1) if len(ends) else ends
    return values - np.where((parts[ends] & _SIGN) > 0, 1 << _BITS * lengths, 0)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
