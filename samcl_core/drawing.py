"""Masks, points and boxes drawn over images. Same input, same bytes; no torch, no matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samcl_core.files import write_atomic

__all__ = ["Mask", "Points", "Rgb", "draw_box", "fit_within", "overlay", "to_pixels", "write_picture", "write_png"]

Rgb = NDArray[np.uint8]
"""(H, W, 3) uint8."""

Mask = NDArray[np.bool_]
"""(H, W) bool."""

Points = Sequence[tuple[float, float]] | NDArray[Any]
"""x, y each."""

_MASK = (255, 45, 70)
_TRUTH = (46, 204, 113)
_BOX = (255, 214, 10)
_POSITIVE = (64, 196, 255)
_NEGATIVE = (255, 170, 0)
_DARK = (20, 20, 20)


def to_pixels(points: Points, width: int, height: int, frame_px: float = 1024.0) -> NDArray[np.float64]:
    """(N, 2) points of the square prompt frame as pixels of a ``width`` x ``height`` image."""
    scale = np.array([width / frame_px, height / frame_px])
    return np.asarray(np.asarray(points, dtype=np.float64).reshape(-1, 2) * scale)


def write_png(path: Path, image: Rgb) -> None:
    """Write (H, W, 3) RGB or (H, W) grey uint8 as PNG, atomically and without time or program stamps."""
    _write(path, image, "PNG")


def write_picture(path: Path, image: Rgb) -> None:
    """Write (H, W, 3) RGB as what the suffix says (``.png``, ``.jpg``, ``.webp`` ...), atomically.

    Raises:
        ValueError: the suffix is none of a format that can be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{path.name}: no picture can be written under this suffix")
    _write(path, image, kind)


def _write(path: Path, image: Rgb, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind)
    write_atomic(path, buffer.getvalue())


def overlay(
    image: Rgb,
    mask: Mask | None,
    truth: Mask | None = None,
    points: Points = (),
    labels: Sequence[int] | NDArray[Any] = (),
    *,
    alpha: float = 0.35,
) -> Rgb:
    """The image with the mask tinted and outlined in red, the truth outlined in green, and the prompt points.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        mask: (H, W) bool, the predicted mask, or ``None`` to draw the truth alone (then tinted as well).
        truth: (H, W) bool or ``None``.
        points: (N, 2) x, y in pixels of this image (``to_pixels`` converts from the prompt frame).
        labels: N labels: 1 foreground (blue), 0 background (orange with a cross bar), -1 padding (not drawn). All
            foreground when empty.
        alpha: opacity of the tint, 0..1.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        ValueError: a mask has another size than the image, or points and labels differ in number.
    """
    for what, pixels in (("mask", mask), ("truth", truth)):
        if pixels is not None and pixels.shape != image.shape[:2]:
            raise ValueError(f"{what} is {pixels.shape}, expected the image's {image.shape[:2]}")
    drawn = np.ascontiguousarray(image, dtype=np.uint8).copy()
    tinted, colour = (truth, _TRUTH) if mask is None else (mask, _MASK)
    if tinted is not None:
        drawn[tinted] = np.rint(drawn[tinted] * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)
    if truth is not None:
        _outline(drawn, truth, _TRUTH)
    if mask is not None:
        _outline(drawn, mask, _MASK)
    _draw_points(drawn, np.asarray(points, dtype=np.float64).reshape(-1, 2), labels)
    return drawn


def draw_box(image: Rgb, box: tuple[float, float, float, float]) -> None:
    """Draw ``x0, y0, x1, y1`` (outer edges, in pixels) into the image."""
    # Thin, so that small objects are still to be seen in theirs.
    thickness = max(1, _thickness(image) // 2)
    first, last = (math.floor(box[0]), math.floor(box[1])), (math.ceil(box[2]) - 1, math.ceil(box[3]) - 1)
    cv2.rectangle(image, first, last, _DARK, 3 * thickness)
    cv2.rectangle(image, first, last, _BOX, thickness)


def fit_within(image: Rgb, mask: Mask | None, side_px: int) -> tuple[Rgb, Mask | None]:
    """Image and mask scaled so that the long side is ``side_px``.

    Raises:
        ValueError: the mask has another size than the image.
    """
    height, width = image.shape[:2]
    if mask is not None and mask.shape != (height, width):
        raise ValueError(f"the mask is {mask.shape}, expected the image's {(height, width)}")
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(image, size, interpolation=smooth), dtype=np.uint8)
    if mask is None:
        return picture, None
    return picture, np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5)


def _thickness(image: Rgb) -> int:
    return max(1, round(math.hypot(*image.shape[:2]) / 260))


def _outline(image: Rgb, mask: Mask, colour: tuple[int, int, int]) -> None:
    thickness = _thickness(image)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A dark rim keeps both outlines visible on images of their own colour.
    rim = tuple(part // 4 for part in colour)
    cv2.drawContours(image, contours, -1, rim, thickness + max(1, thickness // 2), cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, colour, thickness, cv2.LINE_AA)


def _draw_points(image: Rgb, points: NDArray[np.float64], labels: Sequence[int] | NDArray[Any]) -> None:
    given = [int(label) for label in labels] if len(labels) else [1] * len(points)
    if len(given) != len(points):
        raise ValueError(f"{len(points)} points have {len(given)} labels, expected one each")
    for (x, y), label in zip(points, given, strict=True):
        if label >= 0:
            _draw_point(image, math.floor(x), math.floor(y), is_foreground=label > 0)


def _draw_point(image: Rgb, x: int, y: int, *, is_foreground: bool) -> None:
    thickness = _thickness(image)
    radius, ring, pen = max(2, 3 * thickness), max(1, thickness // 2), max(1, thickness // 2)
    cv2.circle(image, (x, y), radius + 2 * ring, _DARK, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), radius + ring, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), radius, _POSITIVE if is_foreground else _NEGATIVE, -1, cv2.LINE_AA)
    arm = max(1, radius // 2)
    cv2.line(image, (x - arm, y), (x + arm, y), _DARK, pen)
    if is_foreground:
        cv2.line(image, (x, y - arm), (x, y + arm), _DARK, pen)
