"""Masks as run lengths and polygons, and back (the COCO conventions)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.errors import DataError

__all__ = ["mask_from_rle", "mask_to_polygons", "mask_to_rle", "polygons_to_mask"]

Mask = NDArray[np.bool_]

# COCO's LEB128 variant (cocoapi maskApi.c, rleToString): 5 bits a character from "0" on, the sixth says "more follow".
# Read here and not by pycocotools: its C code trusts the counts and writes past the end of the mask.
_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16
_MAX_GROUPS = 13
"""A run length has at most 64 bits."""
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
    if sum(runs) != height * width or any(run < 0 for run in runs):
        raise DataError(f"run lengths add up to {sum(runs)}, expected {height} x {width} = {height * width}")
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
    return np.asarray(coco.decode(coco.merge(parts)), dtype=bool)


def _size(found: object) -> tuple[int, int]:
    if isinstance(found, Sequence) and len(found) == 2 and all(type(side) is int and side > 0 for side in found):
        height, width = found
        if height * width <= MAX_PIXELS:
            return height, width
    raise DataError(f"run lengths of size {found!r}, expected [height, width] of at most {MAX_PIXELS} pixels")


def _runs(counts: object) -> list[int]:
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if isinstance(counts, str):
        runs: list[int] = []
        for value in _decoded(counts):
            runs.append(value + runs[-2] if len(runs) > 2 else value)
        return runs
    if isinstance(counts, Sequence) and all(type(run) is int for run in counts):
        return list(counts)
    raise DataError(f"run lengths are a {type(counts).__name__}, expected text or a list of whole numbers")


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


def _decoded(text: str) -> Iterator[int]:
    value = shift = 0
    for character in text:
        part = ord(character) - _FIRST
        if not 0 <= part < 2 * _MORE or shift > _MAX_GROUPS * _BITS:
            raise DataError(f"run lengths hold {character!r}, which COCO's encoding does not")
        value |= (part & (_MORE - 1)) << shift
        shift += _BITS
        if not part & _MORE:
            yield value - (1 << shift) if part & _SIGN else value
            value = shift = 0
