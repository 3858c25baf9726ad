"""Masks as JSON values and back: PNG as base64, or COCO's compressed run lengths."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samcl_core.errors import DataError

__all__ = ["mask_from_png", "mask_from_rle", "mask_to_png", "mask_to_rle"]

Mask = NDArray[np.bool_]

# COCO's LEB128 variant (cocoapi maskApi.c, rleToString): 5 bits a character from "0" on, the sixth says "more follow".
_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16


def mask_to_png(mask: Mask) -> str:
    """(H, W) bool as base64 of a single-channel PNG of 0 and 255; same mask, same text."""
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(mask * np.uint8(255))).save(stream, format="PNG", compress_level=6)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def mask_from_png(text: str) -> Mask:
    """The (H, W) bool mask of ``mask_to_png``.

    Raises:
        DataError: ``text`` is no base64, or no image.
    """
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            return np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, ValueError) as exc:
        raise DataError(f"a mask of {len(text)} characters is no base64 of a PNG: {exc}") from exc


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
    """The (H, W) bool mask of ``mask_to_rle``.

    Raises:
        DataError: the runs do not fill the size.
    """
    height, width = rle["size"]
    runs: list[int] = []
    for value in _decoded(rle["counts"]):
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    if sum(runs) != height * width or any(run < 0 for run in runs):
        raise DataError(f"run lengths add up to {sum(runs)}, expected {height} x {width} = {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


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
        value |= (part & (_MORE - 1)) << shift
        shift += _BITS
        if not part & _MORE:
            yield value - (1 << shift) if part & _SIGN else value
            value = shift = 0
