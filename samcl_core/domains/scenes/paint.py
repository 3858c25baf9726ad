"""What all scenes are painted with: pictures are (S, S, 3) float32 RGB, fields (S, S) float32, both in 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Colour",
    "Field",
    "Picture",
    "blend",
    "blob",
    "blur",
    "curve",
    "distance_from",
    "ellipse",
    "finish",
    "grid",
    "jitter",
    "noise",
    "polygon",
    "ramp",
    "recolour",
    "spots",
    "strokes",
    "union",
    "vignette",
]

Field: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.float32]
Colour: TypeAlias = tuple[float, float, float]
Generator: TypeAlias = np.random.Generator

_SHIFT = 4


def grid(size: int) -> tuple[Field, Field]:
    """x and y of every pixel centre in 0..1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.broadcast_to(axis[None, :], (size, size)), np.broadcast_to(axis[:, None], (size, size))


def noise(rng: Generator, size: int, cells: float, octaves: int = 4, stretch: float = 1.0, gain: float = 0.5) -> Field:
    """Fractal value noise in 0..1.

    Args:
        rng: where the values come from.
        size: side in pixels.
        cells: lattice cells across the image in the coarsest octave.
        octaves: how many; each has twice the cells and ``gain`` times the weight of the one before.
        stretch: above 1 structures run along x, below 1 along y.
        gain: roughness.
    """
    total = np.zeros((size, size), dtype=np.float32)
    weight = 1.0
    for _ in range(octaves):
        rows, columns = max(2, round(cells * math.sqrt(stretch))), max(2, round(cells / math.sqrt(stretch)))
        lattice = rng.random((min(rows, size) + 1, min(columns, size) + 1), dtype=np.float32)
        total += weight * cv2.resize(lattice, (size, size), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * gain
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def ramp(rng: Generator, size: int) -> Field:
    """A linear slope from 0 to 1 in a random direction."""
    x, y = grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    slope = x * math.cos(angle) + y * math.sin(angle)
    return np.asarray((slope - slope.min()) / (slope.max() - slope.min()), dtype=np.float32)


def vignette(size: int, radius: float, softness: float, centre: tuple[float, float] = (0.5, 0.5)) -> Field:
    """1 inside a circle, falling to 0 outside."""
    x, y = grid(size)
    away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip((away - radius) / softness, -30, 30))), dtype=np.float32)


def ellipse(size: int, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Field:
    """1 at the centre, 0 on the edge, negative outside: ``1 - r^2`` of a rotated ellipse."""
    x, y = grid(size)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = x - centre[0], y - centre[1]
    across, along = (u * cos + v * sin) / radii[0], (-u * sin + v * cos) / radii[1]
    return np.asarray(1 - across**2 - along**2, dtype=np.float32)


def polygon(size: int, points: NDArray[np.float64] | Sequence[tuple[float, float]]) -> Field:
    """An antialiased filled polygon; points are x, y in 0..1."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(canvas, [_fixed(points, size)], 255, lineType=cv2.LINE_AA, shift=_SHIFT)
    return canvas.astype(np.float32) / np.float32(255)


def blob(
    rng: Generator, size: int, centre: tuple[float, float], radius: float, wobble: float = 0.2, aspect: float = 1.0
) -> Field:
    """A closed smooth outline filled: a circle whose radius wobbles, stretched by ``aspect`` in a random direction."""
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    radii = np.ones_like(angles)
    for waves in range(2, 7):
        radii += wobble / waves * rng.normal() * np.cos(waves * angles + rng.uniform(0, 2 * math.pi))
    radii = radius * np.clip(radii, 0.35, 1.9)
    turn = rng.uniform(0, math.pi)
    across, along = radii * np.cos(angles) * math.sqrt(aspect), radii * np.sin(angles) / math.sqrt(aspect)
    x = centre[0] + across * math.cos(turn) - along * math.sin(turn)
    y = centre[1] + across * math.sin(turn) + along * math.cos(turn)
    return polygon(size, np.stack([x, y], axis=1))


def union(*shapes: Field) -> Field:
    """The largest of several weights."""
    return np.asarray(np.maximum.reduce(shapes), dtype=np.float32)


def curve(size: int, points: NDArray[np.float64], width: float) -> Field:
    """An antialiased open line of ``width`` (share of the side) through points in 0..1."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    thickness = max(1, round(width * size))
    cv2.polylines(canvas, [_fixed(points, size)], False, 255, thickness, lineType=cv2.LINE_AA, shift=_SHIFT)
    return canvas.astype(np.float32) / np.float32(255)


def strokes(
    rng: Generator, size: int, count: int, length: tuple[float, float], width: float, angle: float, spread: float
) -> Field:
    """Thin, slightly bent lines: hair, scratches, blades. ``spread`` is the deviation of their direction ``angle``."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    thickness = max(1, round(width * size))
    for _ in range(count):
        direction, reach = angle + rng.normal() * spread, rng.uniform(*length)
        along = np.linspace(0, reach, 8)
        bend = rng.normal() * 0.6 * along**2 / max(reach, 1e-6)
        start = rng.uniform(-0.1, 1.1, 2)
        x = start[0] + along * math.cos(direction) - bend * math.sin(direction)
        y = start[1] + along * math.sin(direction) + bend * math.cos(direction)
        line = _fixed(np.stack([x, y], axis=1), size)
        cv2.polylines(canvas, [line], False, 255, thickness, lineType=cv2.LINE_AA, shift=_SHIFT)
    return canvas.astype(np.float32) / np.float32(255)


def spots(rng: Generator, size: int, count: int, radius: tuple[float, float]) -> Field:
    """Filled discs at random places."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    unit = size * (1 << _SHIFT)
    for _ in range(count):
        x, y = (rng.random(2) * unit).astype(int)
        cv2.circle(canvas, (int(x), int(y)), int(rng.uniform(*radius) * unit), 255, -1, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / np.float32(255)


def distance_from(weight: Field) -> Field:
    """Distance of every pixel inside a shape from its edge, in shares of the side; 0 outside."""
    inside = (weight > 0.5).astype(np.uint8)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 3).astype(np.float32) / np.float32(weight.shape[0])


def blur(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur; ``sigma`` as a share of the side."""
    pixels = sigma * values.shape[0]
    if pixels < 0.2:
        return values
    return np.asarray(cv2.GaussianBlur(values, (0, 0), pixels), dtype=np.float32)


def blend(picture: Picture, paint: Picture | Colour, weight: Field, opacity: float = 1.0) -> Picture:
    """``paint`` over ``picture`` where ``weight`` says so."""
    alpha = (weight * np.float32(opacity))[:, :, None]
    mixed = np.asarray(paint, dtype=np.float32) - picture
    mixed *= alpha
    mixed += picture
    return mixed


def recolour(values: Field, stops: Sequence[Colour]) -> Picture:
    """0..1 to colours, linearly between evenly spaced ``stops``."""
    table = np.asarray(stops, dtype=np.float32)
    places = np.linspace(0, 1, len(table))
    steps = np.linspace(0, 1, 256)
    colours = np.stack([np.interp(steps, places, table[:, channel]) for channel in range(3)], axis=1)
    index = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.asarray(colours.astype(np.float32)[index])


def jitter(rng: Generator, colour: Colour, amount: float = 0.05) -> Colour:
    """A colour a little beside the given one."""
    red, green, blue = np.clip(np.asarray(colour) + rng.normal(0, amount, 3), 0, 1)
    return float(red), float(green), float(blue)


def finish(rng: Generator, picture: Picture, grain: float, softness: float = 0.0) -> NDArray[np.uint8]:
    """Lens blur, sensor noise of standard deviation ``grain``, and 8 bits."""
    picture = blur(picture, softness)
    noisy = picture + np.float32(grain) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.rint(np.clip(noisy, 0, 1) * 255), dtype=np.uint8)


def _fixed(points: NDArray[np.float64] | Sequence[tuple[float, float]], size: int) -> NDArray[np.int32]:
    """Points in 0..1 as OpenCV's fixed-point pixel coordinates."""
    return np.rint((np.asarray(points) * size - 0.5) * (1 << _SHIFT)).astype(np.int32)
