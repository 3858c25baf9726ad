"""What is measured of every picture, mask and prompt while it is in memory. Thresholds come later, in ``checks``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from samcl_core.domains.points import FRAME_PX, parse_points
from samcl_core.domains.similarity import fingerprint

__all__ = ["ImageFacts", "MaskFacts", "PointFacts", "image_facts", "mask_facts", "point_facts"]

_MIN_PART_FRAC = 0.1
# A JPEG block is 8 pixels wide: ringing and blur around an edge reach as far, and no farther.
_HALO_PX = 8
_TOLERANCE = 1 / 8
_CLEAR = 8.0


@dataclass(frozen=True)
class ImageFacts:
    """What is measured of a picture.

    Attributes:
        contrast: standard deviation of the thumbnail's grey values; where that is little, of the image's channel with
            the largest one. 0 when constant.
        hash: perceptual hash, 0 .. 2**64 - 1 (``similarity.fingerprint``).
        thumbnail: its 32 x 32 grey values, row by row.
    """

    contrast: float
    hash: int
    thumbnail: bytes


@dataclass(frozen=True)
class MaskFacts:
    """What is measured of a mask.

    Attributes:
        foreground_frac: share of foreground pixels, 0..1.
        num_parts: connected parts (8 neighbours).
        thickness_px: width of the thinnest part that matters, in pixels of a picture with the long side ``model_px``;
            0 for an empty mask.
        grey_frac: of a mask file, the share of what is not background that is neither black nor white and no edge.
        max_grey: of a mask file, its largest grey value; -1 where the mask is from something else.
    """

    foreground_frac: float
    num_parts: int
    thickness_px: float
    grey_frac: float = 0.0
    max_grey: int = -1


@dataclass(frozen=True)
class PointFacts:
    """What is measured of the prompt points that came with a mask.

    Attributes:
        problem: why the entry cannot be read; empty when it can.
        misses_px: for each point how far it is from where its label says, in the 1024 frame: a foreground point from
            the mask, a background point from the outside. 0 for a point that is right.
    """

    problem: str = ""
    misses_px: tuple[float, ...] = ()


def image_facts(image: NDArray[np.uint8]) -> ImageFacts:
    """Measure a picture, (H, W, 3) uint8 RGB."""
    number, thumbnail = fingerprint(image)
    contrast = _deviation(thumbnail)
    if contrast < _CLEAR:
        contrast = max(contrast, _deviation(image))
    return ImageFacts(round(contrast, 3), number, thumbnail.tobytes())


def _deviation(pixels: NDArray[np.uint8]) -> float:
    return float(cv2.meanStdDev(pixels)[1].max())


def mask_facts(
    mask: NDArray[np.bool_],
    grey: NDArray[np.uint8] | None = None,
    *,
    is_clean: bool = False,
    model_px: int = 1024,
    min_part_frac: float = _MIN_PART_FRAC,
) -> MaskFacts:
    """Measure a mask.

    Args:
        mask: (H, W) bool.
        grey: (H, W) uint8, the values of the file it is from; ``None`` for polygons and the like.
        is_clean: ``grey`` is 255 in the mask and 0 elsewhere: it need not be measured.
        model_px: long side of the picture that the model sees.
        min_part_frac: parts with a smaller share of the foreground do not count for the thickness.
    """
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    count = cv2.countNonZero(pixels)
    num_parts, thickness = _shape(pixels, count, model_px, min_part_frac) if count else (0, 0.0)
    if is_clean:
        grey_frac, max_grey = 0.0, 255 if count else 0
    else:
        grey_frac, max_grey = (0.0, -1) if grey is None else _greys(grey, pixels, count)
    return MaskFacts(
        foreground_frac=count / pixels.size,
        num_parts=num_parts,
        thickness_px=round(thickness, 2),
        grey_frac=grey_frac,
        max_grey=max_grey,
    )


def point_facts(mask: NDArray[np.bool_], entry: Any) -> PointFacts:
    """Measure a source's own points for a mask.

    Args:
        mask: (H, W) bool.
        entry: ``[[[x, y], ...], [label, ...]]`` in the 1024 frame, as it stands in ``points.json``; unchecked.
    """
    try:
        points, labels = parse_points(entry)
    except ValueError as exc:
        return PointFacts(problem=str(exc))
    return PointFacts(misses_px=tuple(_miss(mask, *point, label) for point, label in zip(points, labels, strict=True)))


def _miss(mask: NDArray[np.bool_], x: float, y: float, label: int) -> float:
    """Distance in the 1024 frame from (x, y) to the nearest pixel that is what the label says; 0 there."""
    height, width = mask.shape
    if bool(mask[int(y * height / FRAME_PX), int(x * width / FRAME_PX)]) == bool(label):
        return 0.0
    rows, columns = np.nonzero(mask if label else ~mask)
    if not len(rows):
        return float(FRAME_PX)
    across, down = (columns + 0.5) * (FRAME_PX / width) - x, (rows + 0.5) * (FRAME_PX / height) - y
    return round(float(np.sqrt((across**2 + down**2).min())), 1)


def _shape(pixels: NDArray[np.uint8], count: int, model_px: int, min_part_frac: float) -> tuple[int, float]:
    """Number of parts, and the width of the thinnest that matters at ``model_px``."""
    left, top, width, height = cv2.boundingRect(pixels)
    cut, scale = pixels[top : top + height, left : left + width], model_px / max(pixels.shape)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A line thinner than a pixel stays in one piece here; how much of each pixel it covers says how thin it is.
    cover = cv2.resize(cut * np.uint8(255), size, interpolation=cv2.INTER_AREA) if scale < 1 else cut
    is_smaller = scale < 1 and cv2.countNonZero(cover) > 0  # specks in a huge mask cover next to nothing
    if is_smaller:
        cut = np.asarray(np.asarray(cover) > 0).view(np.uint8)
        count = cv2.countNonZero(cut)
    parts = _parts(cut)
    weights = _weights(cut, cover, parts, width * height * scale**2) if is_smaller else [scale] * len(parts)
    least = min(count * min_part_frac, max(part.area for part in parts))
    widths = [
        _width(part.area, part.outline) * weight
        for part, weight in zip(parts, weights, strict=True)
        if part.area >= least
    ]
    return len(parts), min(widths)


@dataclass
class _Part:
    """A connected part: number of pixels, length of its outline with those of its holes, one of its pixels."""

    area: float
    outline: float
    row: int
    column: int


def _parts(cut: NDArray[np.uint8]) -> list[_Part]:
    """The connected parts (8 neighbours) of a mask that is not empty.

    An outline runs through the centres of the outermost pixels. With the area A inside and B pixels on it, there are
    A + B/2 + 1 pixels on and inside it, and a hole has A - B/2 + 1 (Pick's theorem).
    """
    contours, tree = cv2.findContours(cut, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts: dict[int, _Part] = {}
    for number, (contour, (_, _, _, parent)) in enumerate(zip(contours, tree[0].tolist(), strict=True)):
        inside, on = cv2.contourArea(contour), len(contour) / 2 if len(contour) > 1 else 0.0
        length = cv2.arcLength(contour, closed=True)
        if parent < 0:
            column, row = contour[0, 0].tolist()
            parts[number] = _Part(inside + on + 1, length + 4, row, column)
        else:
            parts[parent].area -= inside - on + 1
            parts[parent].outline += length
    return list(parts.values())


def _weights(cut: NDArray[np.uint8], cover: NDArray[Any], parts: Sequence[_Part], true_size: float) -> list[float]:
    """For each part the area that it really has by its number of pixels, at the scale of the model."""
    num_labels, labels = cv2.connectedComponents(cut, connectivity=8)
    covered = np.bincount(np.asarray(labels).ravel(), weights=np.asarray(cover).ravel(), minlength=num_labels)
    # A side shorter than one pixel of the model was rounded up to one.
    unit = true_size / cover.size / 255
    return [float(covered[labels[part.row, part.column]]) * unit / part.area for part in parts]


def _width(area: float, outline: float) -> float:
    """Of the rectangle with the same area A and outline P: the smaller root of w**2 - P/2 w + A = 0.

    It is exact for straight lines, and for compact parts a square's side.
    """
    return (outline - math.sqrt(max(0.0, outline**2 - 16 * area))) / 4


def _greys(grey: NDArray[np.uint8], pixels: NDArray[np.uint8], count: int) -> tuple[float, int]:
    """Share of in-between values among what is not background, away from the edges of the mask; the largest value."""
    low, high, _, _ = cv2.minMaxLoc(grey)
    slack = (high - low) * _TOLERANCE
    between = cv2.inRange(grey, int(low + slack) + 1, int(high - slack))
    if not cv2.countNonZero(between):
        return 0.0, int(high)
    side = 2 * _HALO_PX + 1
    edges = cv2.morphologyEx(pixels, cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    between[edges > 0] = 0
    found = cv2.countNonZero(between)
    return round(found / (found + count), 4), int(high)
