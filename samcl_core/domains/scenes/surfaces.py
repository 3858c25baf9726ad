"""Inspected surfaces: cracks in concrete, defects on rails, rust on brushed metal, shadows on the ground."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from samcl_core.domains.scenes.paint import (
    Field,
    Generator,
    Picture,
    blend,
    blob,
    blur,
    curve,
    distance_from,
    ellipse,
    finish,
    grid,
    jitter,
    noise,
    polygon,
    ramp,
    recolour,
    spots,
    strokes,
    union,
)
from samcl_core.domains.scenes.registry import Drawing, register_scene

__all__ = ["crack", "metal", "rail", "shadow"]


_LEGS = ((0.45, 0.9), (0.49, 0.9), (0.5, 0.62), (0.51, 0.9), (0.55, 0.9), (0.57, 0.35), (0.43, 0.35))
_ARMS = ((0.36, 0.62), (0.4, 0.64), (0.46, 0.42), (0.54, 0.42), (0.6, 0.64), (0.64, 0.62), (0.56, 0.34), (0.44, 0.34))


def _ground(rng: Generator, size: int) -> Picture:
    """Sunlit ground: paving, grass or sand."""
    kind = int(rng.integers(3))
    fine = noise(rng, size, size / 4, 2)
    if kind == 0:
        picture = recolour(0.5 * fine + 0.5 * noise(rng, size, 6), [(0.62, 0.58, 0.52), (0.86, 0.82, 0.74)])
        x, y = grid(size)
        tiles, angle = rng.uniform(3, 7), rng.uniform(-0.3, 0.3)
        u, v = (x + angle * y) * tiles, (y - angle * x) * tiles
        joints = (np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v))) < 0.035).astype(np.float32)
        return blend(picture, (0.45, 0.41, 0.36), blur(joints, 0.003), 0.7)
    if kind == 1:
        blades = strokes(rng, size, 260, (0.03, 0.08), 0.006, -math.pi / 2, 0.5)
        picture = recolour(0.6 * fine + 0.4 * noise(rng, size, 8), [(0.38, 0.50, 0.16), (0.66, 0.76, 0.34)])
        return blend(picture, (0.80, 0.86, 0.48), blades, 0.5)
    return recolour(
        0.4 * fine + 0.6 * noise(rng, size, 5, 5, stretch=2.5),
        [jitter(rng, (0.74, 0.62, 0.42), 0.03), jitter(rng, (0.93, 0.84, 0.62), 0.03)],
    )


def _caster(rng: Generator, size: int) -> Field:
    """The outline of what throws the shadow: a person, a tree or a sign, lying obliquely on the ground."""
    kind = int(rng.integers(3))
    parts: list[Field] = []
    if kind == 0:
        parts = [
            polygon(size, _LEGS),
            polygon(size, _ARMS),
            (ellipse(size, (0.5, 0.26), (0.065, 0.08)) > 0).astype(np.float32),
        ]
    elif kind == 1:
        trunk = polygon(size, [(0.47, 0.95), (0.53, 0.95), (0.515, 0.4), (0.485, 0.4)])
        places = [(0.5 + rng.normal(0, 0.08), 0.32 + rng.normal(0, 0.07)) for _ in range(4)]
        parts = [trunk, *(blob(rng, size, place, 0.13, 0.3) for place in places)]
    else:
        post = polygon(size, [(0.48, 0.95), (0.52, 0.95), (0.52, 0.4), (0.48, 0.4)])
        parts = [post, polygon(size, [(0.3, 0.45), (0.7, 0.45), (0.7, 0.18), (0.3, 0.18)])]
    return union(*parts)


def _lay_down(rng: Generator, shape: Field) -> Field:
    """Shear, turn and stretch a shape, as a low sun does."""
    size = shape.shape[0]
    angle, stretch, shear = rng.uniform(-1.2, 1.2), rng.uniform(0.85, 1.25), rng.uniform(-0.5, 0.5)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[rng.uniform(0.9, 1.5), shear], [0.0, stretch]])
    middle = size / 2
    offset = np.array([middle, middle]) + rng.normal(0, 0.05, 2) * size - matrix @ np.array([middle, 0.52 * size])
    full = np.concatenate([matrix, offset[:, None]], axis=1)
    return np.asarray(cv2.warpAffine(shape, full, (size, size), flags=cv2.INTER_LINEAR), dtype=np.float32)


@register_scene("shadow")
def shadow(rng: Generator, size: int) -> Drawing:
    """Sunlit paving, grass or sand; the object is the dark bluish shadow of a person, tree or sign."""
    picture = _ground(rng, size) * (0.9 + 0.2 * ramp(rng, size))[:, :, None]
    shape = _lay_down(rng, _caster(rng, size))
    depth = rng.uniform(0.28, 0.45)
    tint = np.array([depth * 0.85, depth * 0.95, depth * 1.2], dtype=np.float32)
    soft = blur(shape, rng.uniform(0.004, 0.012))[:, :, None]
    return finish(rng, np.asarray(picture * (1 - soft + soft * tint), dtype=np.float32), 0.015), shape > 0.5


def _walk(rng: Generator, start: NDArray[np.float64], heading: float, length: float, steps: int) -> NDArray[np.float64]:
    """A jagged path of ``length`` that keeps its heading on the whole."""
    turns = heading + 0.55 * rng.normal(size=steps) + 0.15 * np.cumsum(rng.normal(size=steps))
    moves = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (length / steps)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


@register_scene("crack")
def crack(rng: Generator, size: int) -> Drawing:
    """Grey concrete with pores, stains and formwork lines; the object is a jagged dark crack with a branch or two."""
    tone = rng.uniform(0.5, 0.7)
    mottled = 0.55 * noise(rng, size, 5, 5) + 0.45 * noise(rng, size, size / 3, 2)
    picture = recolour(mottled, [(tone - 0.14, tone - 0.14, tone - 0.15), (tone + 0.14, tone + 0.14, tone + 0.12)])
    picture = blend(picture, (0.42, 0.40, 0.36), np.clip(noise(rng, size, 3, 3) * 3 - 1.9, 0, 1), 0.35)
    picture = blend(picture, (0.25, 0.25, 0.24), spots(rng, size, 28, (0.002, 0.007)), 0.6)
    heading = rng.choice([0.0, math.pi / 2]) + rng.normal() * 0.35
    middle = rng.uniform(0.4, 0.6, 2)
    start = middle - 0.55 * np.array([math.cos(heading), math.sin(heading)])
    main = _walk(rng, start, heading, rng.uniform(0.85, 1.15), 26)
    width = rng.uniform(0.026, 0.042)
    shape = np.maximum(curve(size, main[:14], width), curve(size, main[12:], width * 0.75))
    for _ in range(int(rng.integers(1, 3))):
        joint = main[int(rng.integers(7, 18))]
        branch = _walk(rng, joint, heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0), rng.uniform(0.2, 0.4), 10)
        shape = np.maximum(shape, curve(size, branch, width * 0.6))
    picture = blend(picture, (0.80, 0.79, 0.76), np.roll(blur(shape, 0.006), max(1, size // 90), axis=(0, 1)), 0.3)
    dark = 0.07 + 0.10 * noise(rng, size, size / 6, 2)
    picture = blend(picture, np.repeat(dark[:, :, None], 3, axis=2), blur(shape, 0.003), 0.93)
    return finish(rng, picture * (0.88 + 0.2 * ramp(rng, size))[:, :, None], 0.02), shape > 0.5


@register_scene("rail")
def rail(rng: Generator, size: int) -> Drawing:
    """A bright polished rail head between dark ballast; the object is a rough dark spall on the running surface."""
    x, _ = grid(size)
    stones = noise(rng, size, 18, 2)
    picture = recolour(np.abs(stones - 0.5) * 2, [(0.10, 0.09, 0.08), (0.30, 0.26, 0.22), (0.42, 0.38, 0.33)])
    middle, half = rng.uniform(0.45, 0.55), rng.uniform(0.27, 0.34)
    across = np.clip(np.abs(x - middle) / half, 0, 1)
    streaks = noise(rng, size, 26, 3, stretch=0.012)
    head = np.asarray(0.50 + 0.30 * (1 - across**2) + 0.16 * (streaks - 0.5), dtype=np.float32)
    steel = head[:, :, None] * np.array([0.97, 1.0, 1.04], dtype=np.float32)
    rust = np.clip((across - 0.78) * 5, 0, 1) * (0.5 + 0.5 * noise(rng, size, 8, 3, stretch=0.2))
    steel = blend(np.asarray(steel, dtype=np.float32), (0.36, 0.21, 0.13), np.asarray(rust, dtype=np.float32), 0.9)
    picture = blend(picture, steel, blur((np.abs(x - middle) < half).astype(np.float32), 0.004))
    centre = (middle + rng.uniform(-0.09, 0.09), rng.uniform(0.25, 0.75))
    radius = rng.uniform(0.095, 0.17)
    shape = blob(rng, size, centre, radius, 0.42, rng.uniform(1, 1.5)) * (np.abs(x - middle) < half - 0.01)
    pit = recolour(noise(rng, size, 22, 3), [(0.07, 0.06, 0.06), (0.30, 0.25, 0.22), (0.45, 0.38, 0.34)])
    picture = blend(picture, (0.95, 0.96, 0.98), np.roll(blur(shape, 0.008), size // 64, axis=0), 0.35)
    picture = blend(picture, pit, blur(np.asarray(shape, dtype=np.float32), 0.003))
    return finish(rng, picture, 0.015, 0.002), np.asarray(shape > 0.5)


@register_scene("metal")
def metal(rng: Generator, size: int) -> Drawing:
    """A brushed blue-grey steel plate with bolt holes; the object is a patch of orange rust with a crusty edge."""
    brushed = 0.7 * noise(rng, size, size / 3, 2, stretch=300.0) + 0.3 * noise(rng, size, 3, 2)
    picture = recolour(brushed, [(0.40, 0.46, 0.55), (0.66, 0.72, 0.80), (0.82, 0.87, 0.93)])
    picture = blend(picture, (0.92, 0.95, 1.0), strokes(rng, size, 10, (0.2, 0.7), 0.004, 0.0, 0.25), 0.5)
    inset = rng.uniform(0.07, 0.11)
    for corner in ((inset, inset), (1 - inset, inset), (inset, 1 - inset), (1 - inset, 1 - inset)):
        hole = ellipse(size, corner, (0.05, 0.05))
        picture = blend(picture, (0.85, 0.89, 0.94), blur((hole > -0.35).astype(np.float32), 0.004), 0.7)
        picture = blend(picture, (0.05, 0.06, 0.08), blur((hole > 0).astype(np.float32), 0.004))
    centre = (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))
    radius = rng.uniform(0.12, 0.25)
    rough = blob(rng, size, centre, radius, 0.3, rng.uniform(1, 2.0)) + 0.9 * (noise(rng, size, 14, 3) - 0.5)
    near = blob(rng, size, centre, radius * 1.1, 0.1, 1.0)
    shape = _largest(blur(np.asarray(rough * near, dtype=np.float32), 0.008) > 0.5)
    crust = recolour(noise(rng, size, 12, 4, gain=0.7), [(0.25, 0.09, 0.04), (0.66, 0.28, 0.08), (0.86, 0.50, 0.18)])
    weight = shape.astype(np.float32)
    edge = np.clip(1 - distance_from(weight) / 0.02, 0, 1)
    crust = blend(crust, (0.22, 0.09, 0.05), np.asarray(edge, dtype=np.float32), 0.5)
    picture = blend(picture, (0.55, 0.38, 0.26), blur(weight, 0.025), 0.45)
    picture = blend(picture, crust, blur(weight, 0.004), 0.95)
    return finish(rng, picture, 0.012), shape


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask, its holes filled."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    canvas = np.zeros(mask.shape, dtype=np.uint8)
    if outlines:
        cv2.drawContours(canvas, [max(outlines, key=cv2.contourArea)], -1, 1, -1)
    return canvas > 0
