"""Masks as base64 of a PNG, and back."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samcl_core.errors import DataError

__all__ = ["mask_from_png", "mask_to_png"]

Mask = NDArray[np.bool_]


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
