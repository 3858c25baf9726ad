"""Shapes of annotation tools as polygons, and several shapes of one object as one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from samcl_core.domains.annotations import Shape
from samcl_core.masks import mask_from_rle, mask_to_rle, polygons_to_mask

__all__ = ["box_outline", "ellipse_outline", "united"]

_MAX_POINTS = 4096


def box_outline(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> tuple[float, ...]:
    """The four corners of a box, turned clockwise around its centre."""
    x, y, across, down = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    return _turned(x, y, ((-across, -down), (across, -down), (across, down), (-across, down)), degrees)


def ellipse_outline(x: float, y: float, across: float, down: float, degrees: float = 0.0) -> tuple[float, ...]:
    """A polygon at most a quarter of a pixel inside of an ellipse with these half axes, turned clockwise."""
    # A chord of n is r (1 - cos(pi / n)) inside of a circle, which is 1/4 at n = pi sqrt(2 r) and less from there on.
    number = math.ceil(min(_MAX_POINTS, max(12.0, math.pi * math.sqrt(2 * max(abs(across), abs(down))))))
    turns = [2 * math.pi * at / number for at in range(number)]
    return _turned(x, y, [(across * math.cos(turn), down * math.sin(turn)) for turn in turns], degrees)


def united(parts: Iterable[tuple[Hashable, Shape]], frame: tuple[int, int] | None) -> tuple[Shape, ...]:
    """One shape for each key, in the order in which the keys come first.

    Args:
        parts: shapes with what says to which object they belong; the label is part of that.
        frame: (width, height) of the image; needed where parts of one object are run lengths.
    """
    objects: dict[Hashable, list[Shape]] = {}
    for key, shape in parts:
        objects.setdefault(key, []).append(shape)
    return tuple(_one(shapes, frame) for shapes in objects.values())


def _one(parts: list[Shape], frame: tuple[int, int] | None) -> Shape:
    if len(parts) == 1:
        return parts[0]
    polygons = tuple(polygon for part in parts for polygon in part.polygons)
    drawn = [part.rle for part in parts if part.rle is not None]
    if not drawn:
        return Shape(parts[0].label, polygons)
    assert frame is not None
    mask = polygons_to_mask(polygons, *frame)
    for rle in drawn:
        mask |= mask_from_rle(rle)
    return Shape(parts[0].label, rle=mask_to_rle(mask))


def _turned(x: float, y: float, offsets: Iterable[tuple[float, float]], degrees: float) -> tuple[float, ...]:
    """Points at these offsets from (x, y), turned clockwise as seen (y points down)."""
    cos, sin = (1.0, 0.0) if not degrees else (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    return tuple(value for dx, dy in offsets for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos))
