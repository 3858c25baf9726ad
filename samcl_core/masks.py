"""Masks as run lengths and polygons, and back (the COCO conventions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.errors import DataError

__all__ = ["mask_from_rle", "mask_to_polygons", "mask_to_rle", "polygons_to_mask"]

Mask = NDArray[np.bool_]

# COCO's LEB128 variant (cocoapi maskApi.c, rleToString): 5 bits a character from "0" on, the sixth says "more follow".
# Read here and not by pycocotools: its C code trusts the counts and writes past the end of the mask.
_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16
_MAX_GROUPS = 7
"""No number needs more: 35 bits are more than any image has pixels."""
_MAX_COORDINATE = 1e6


MAX_PIXELS = 89_478_485
"""Larger masks are refused before they are made (as larger images are)."""


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """(H, W) bool as COCO RLE: ``{"size": [H, W], "counts": text}``, as ``pycocotools.mask`` reads and writes it."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist() if flat.size else []
    if flat.size and flat[0]:
        runs.insert(0, 0)  # the first run counts background
    differences = (run - runs[at - 2] if at > 2 else run for at, run in enumerate(runs))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(_encoded(value) for value in differences)}


def mask_from_rle(rle: Mapping[str, Any]) -> Mask:
    """The (H, W) bool mask of COCO run lengths, compressed (text) or plain (a list of numbers).

    Raises:
        DataError: not run lengths, of an image larger than ``MAX_PIXELS``, or they do not fill the size.
    """
    height, width = _size(rle.get("size"))
    runs = _runs(rle.get("counts"))
    if runs.sum() != height * width or (runs < 0).any():
        raise DataError(f"run lengths add up to {runs.sum()}, expected {height} x {width} = {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """Outlines of a (H, W) bool mask as ``x0, y0, x1, y1, ...`` along pixel edges, outer ones only (holes are lost).

    A part of one pixel's width has an outline, too: drawn again by ``polygons_to_mask`` it is the same pixels.
    """
    import cv2

    # Twice the size: outlines then run through pixel quarters, so that parts of one pixel have an area.
    large = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [(contour.reshape(-1, 2).astype(float) + 0.5) / 2 for contour in contours]
    return [outline.ravel().tolist() for outline in outlines if len(outline) >= 3]


def polygons_to_mask(polygons: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The (H, W) bool mask of outlines ``x0, y0, x1, y1, ...`` in pixels, united; outside of the frame they are cut.

    Drawn as COCO draws (``pycocotools``).

    Raises:
        DataError: an outline has fewer than three points, half a point, or numbers that are none.
    """
    from pycocotools import mask as coco

    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"an outline has {len(polygon)} numbers, expected x, y of three or more points")
        if not np.isfinite(polygon).all() or np.abs(polygon).max() > _MAX_COORDINATE:
            raise DataError(f"an outline has coordinates up to {max(polygon, key=abs)}, expected pixels of the image")
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    parts = coco.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)
    return mask_from_rle(coco.merge(parts))


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
    if isinstance(counts, Sequence) and all(type(run) is int and run <= MAX_PIXELS for run in counts):
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
