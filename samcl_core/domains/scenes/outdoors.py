"""The world outside: everyday photographs, camouflaged animals, fields from above."""

from __future__ import annotations

import math

import numpy as np

from samcl_core.domains.scenes.paint import (
    Colour,
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
    recolour,
    union,
)
from samcl_core.domains.scenes.registry import Drawing, register_scene

__all__ = ["camouflage", "fields", "natural"]

_VIVID: tuple[Colour, ...] = (
    (0.85, 0.15, 0.12),
    (0.95, 0.75, 0.10),
    (0.15, 0.35, 0.80),
    (0.90, 0.45, 0.10),
    (0.55, 0.18, 0.60),
    (0.95, 0.95, 0.92),
    (0.12, 0.12, 0.14),
)

_CROPS: tuple[Colour, ...] = (
    (0.62, 0.66, 0.30),
    (0.36, 0.50, 0.22),
    (0.76, 0.66, 0.42),
    (0.52, 0.40, 0.28),
    (0.24, 0.38, 0.18),
)


def _landscape(rng: Generator, size: int) -> Picture:
    """Sky with clouds over hills and a meadow."""
    _, y = grid(size)
    sky = recolour(y * 1.6, [jitter(rng, (0.28, 0.52, 0.86)), (0.80, 0.88, 0.95)])
    sky = blend(sky, (1.0, 1.0, 1.0), np.clip(noise(rng, size, 4, 4, stretch=0.4) * 3 - 1.6, 0, 1), 0.8)
    picture = sky
    horizon = rng.uniform(0.38, 0.55)
    for depth, tint in ((0.0, (0.42, 0.55, 0.62)), (0.1, (0.25, 0.42, 0.24))):
        along = np.linspace(-0.05, 1.05, 24)
        ridge = horizon + depth - 0.08 * np.sin(along * rng.uniform(4, 9) + rng.uniform(0, 6))
        outline = [(-0.1, 1.2), *zip(along.tolist(), ridge.tolist(), strict=True), (1.1, 1.2)]
        texture = 0.75 + 0.5 * noise(rng, size, 12)[:, :, None]
        picture = blend(picture, np.asarray(np.asarray(tint, dtype=np.float32) * texture), polygon(size, outline))
    meadow = recolour(noise(rng, size, 20, 3, stretch=0.4), [(0.24, 0.42, 0.12), (0.56, 0.68, 0.24)])
    return blend(picture, meadow, blur((y > horizon + 0.22).astype(np.float32), 0.02))


def _street(rng: Generator, size: int) -> Picture:
    """House fronts with windows over a road."""
    _, y = grid(size)
    picture = recolour(y, [(0.70, 0.80, 0.92), (0.90, 0.93, 0.96)])
    left = -0.1
    while left < 1:
        width, top = rng.uniform(0.2, 0.4), rng.uniform(0.05, 0.3)
        wall = jitter(rng, ((0.72, 0.45, 0.35), (0.85, 0.78, 0.62), (0.55, 0.60, 0.66))[int(rng.integers(3))], 0.05)
        front = [(left, top), (left + width, top), (left + width, 0.7), (left, 0.7)]
        picture = blend(picture, wall, polygon(size, front))
        for row in np.arange(top + 0.05, 0.6, 0.13):
            for column in np.arange(left + 0.04, left + width - 0.06, 0.1):
                glass = [(column, row), (column + 0.05, row), (column + 0.05, row + 0.08), (column, row + 0.08)]
                picture = blend(picture, jitter(rng, (0.20, 0.26, 0.34), 0.05), polygon(size, glass))
        left += width
    road = recolour(noise(rng, size, size / 4, 2), [(0.30, 0.30, 0.32), (0.46, 0.46, 0.47)])
    return blend(picture, road, (y > 0.68).astype(np.float32))


def _room(rng: Generator, size: int) -> Picture:
    """A wall with a picture frame over a wooden table."""
    x, y = grid(size)
    tones = [jitter(rng, (0.80, 0.80, 0.74), 0.08), jitter(rng, (0.66, 0.70, 0.70), 0.08)]
    wall = recolour(noise(rng, size, 3, 2), tones)
    left, top = rng.uniform(0.05, 0.6), rng.uniform(0.03, 0.12)
    frame = [(left, top), (left + 0.3, top), (left + 0.3, top + 0.28), (left, top + 0.28)]
    inside = [(a + (0.03 if a == left else -0.03), b + (0.03 if b == top else -0.03)) for a, b in frame]
    wall = blend(wall, (0.30, 0.20, 0.12), polygon(size, frame))
    wall = blend(wall, jitter(rng, (0.5, 0.6, 0.7), 0.2), polygon(size, inside))
    rings = np.sin((y * 60 + 8 * noise(rng, size, 3, 3, stretch=6.0)) * 2) * 0.5 + 0.5
    wood = recolour(np.asarray(rings, dtype=np.float32), [(0.50, 0.30, 0.15), (0.68, 0.45, 0.25)])
    return blend(wall, wood, (y + 0.02 * x > rng.uniform(0.5, 0.62)).astype(np.float32))


def _ball(rng: Generator, size: int, colour: Colour) -> tuple[Field, Picture]:
    centre, radius = (rng.uniform(0.3, 0.7), rng.uniform(0.45, 0.7)), rng.uniform(0.12, 0.25)
    dome = ellipse(size, centre, (radius, radius))
    lit = ellipse(size, (centre[0] - 0.35 * radius, centre[1] - 0.4 * radius), (1.2 * radius, 1.2 * radius))
    paint = np.asarray(colour, dtype=np.float32) * (0.45 + 0.6 * np.clip(lit, 0, 1))[:, :, None]
    x, y = grid(size)
    across = (x - centre[0]) * math.cos(0.6) + (y - centre[1]) * math.sin(0.6)
    stripe = (np.abs(across) < 0.25 * radius).astype(np.float32)
    return (dome > 0).astype(np.float32), blend(np.asarray(paint), (0.95, 0.95, 0.92), stripe, 0.7)


def _car(rng: Generator, size: int, colour: Colour) -> tuple[Field, Picture]:
    left, base, long = rng.uniform(0.08, 0.3), rng.uniform(0.68, 0.85), rng.uniform(0.48, 0.6)

    def at(points: list[tuple[float, float]]) -> Field:
        return polygon(size, [(left + a * long, base - b * long) for a, b in points])

    body = at([(0, 0.05), (0, 0.24), (0.2, 0.28), (0.34, 0.45), (0.7, 0.45), (0.84, 0.27), (1, 0.24), (1, 0.05)])
    wheels = [ellipse(size, (left + a * long, base - 0.05 * long), (0.1 * long, 0.1 * long)) for a in (0.22, 0.78)]
    tyres = np.maximum(*[(wheel > 0).astype(np.float32) for wheel in wheels])
    paint = (
        np.broadcast_to(np.asarray(colour, dtype=np.float32), (size, size, 3)) * (1.1 - 0.4 * grid(size)[1])[:, :, None]
    )
    glass = at([(0.26, 0.28), (0.37, 0.42), (0.67, 0.42), (0.77, 0.28)])
    paint = blend(blend(np.asarray(paint), (0.65, 0.80, 0.90), glass, 0.9), (0.08, 0.08, 0.09), tyres)
    return np.maximum(body, tyres), paint


def _animal(rng: Generator, size: int, colour: Colour) -> tuple[Field, Picture]:
    shape = _creature(rng, size, (rng.uniform(0.42, 0.58), rng.uniform(0.55, 0.7)), rng.uniform(0.15, 0.21))
    fur = noise(rng, size, 24, 3, stretch=3.0)
    coat = np.asarray(colour, dtype=np.float32) * (0.6 + 0.6 * fur)[:, :, None]
    patches = (noise(rng, size, 7, 2) > 0.62).astype(np.float32)
    return shape, blend(np.asarray(coat, dtype=np.float32), jitter(rng, (0.92, 0.88, 0.80), 0.05), patches, 0.6)


def _creature(rng: Generator, size: int, centre: tuple[float, float], reach: float) -> Field:
    """A four-legged outline: body, head, legs and tail, looking left or right."""
    side = 1 if rng.random() < 0.5 else -1
    x0, y0 = centre

    def place(dx: float, dy: float) -> tuple[float, float]:
        return x0 + side * dx * reach, y0 + dy * reach

    parts = [
        (ellipse(size, centre, (1.15 * reach, 0.6 * reach)) > 0).astype(np.float32),
        (ellipse(size, place(1.25, -0.6), (0.45 * reach, 0.38 * reach)) > 0).astype(np.float32),
        polygon(size, [place(0.6, -0.3), place(1.0, -0.9), place(1.5, -0.4), place(1.0, 0.2)]),
        polygon(size, [place(1.0, -0.85), place(1.1, -1.3), place(1.35, -0.9)]),
        curve(size, np.array([place(-1.0, -0.1), place(-1.45, -0.45), place(-1.6, -0.9)]), 0.2 * reach),
    ]
    for leg in (-0.85, -0.45, 0.4, 0.8):
        foot = leg + rng.normal() * 0.12
        outline = [place(leg - 0.16, 0.2), place(leg + 0.16, 0.2), place(foot + 0.1, 1.25), place(foot - 0.1, 1.25)]
        parts.append(polygon(size, outline))
    return union(*parts)


@register_scene("natural")
def natural(rng: Generator, size: int) -> Drawing:
    """Everyday photographs: landscape, street or room; the object is a ball, a car or an animal in a vivid colour."""
    place = (_landscape, _street, _room)[int(rng.integers(3))]
    thing = (_ball, _car, _animal)[int(rng.integers(3))]
    picture = place(rng, size)
    shape, paint = thing(rng, size, jitter(rng, _VIVID[int(rng.integers(len(_VIVID)))], 0.04))
    fallen = np.roll(blur(shape, 0.02), (size // 24, size // 32), axis=(0, 1))
    picture = blend(picture, (0.05, 0.06, 0.08), np.asarray(fallen), 0.4)
    picture = blend(picture, paint, blur(shape, 0.003))
    return finish(rng, picture * np.float32(rng.uniform(0.85, 1.1)), 0.012, 0.002), shape > 0.5


@register_scene("camouflage")
def camouflage(rng: Generator, size: int) -> Drawing:
    """Leaf litter, bark or sea floor; the object is an animal in the same colours, betrayed by its relief."""
    palettes: tuple[tuple[Colour, ...], ...] = (
        ((0.10, 0.12, 0.04), (0.30, 0.30, 0.10), (0.48, 0.42, 0.18), (0.24, 0.20, 0.08)),
        ((0.16, 0.11, 0.07), (0.36, 0.26, 0.16), (0.52, 0.42, 0.28), (0.26, 0.20, 0.14)),
        ((0.08, 0.16, 0.10), (0.16, 0.30, 0.16), (0.40, 0.46, 0.24), (0.20, 0.24, 0.12)),
    )
    stops = [jitter(rng, colour, 0.02) for colour in palettes[int(rng.integers(len(palettes)))]]
    litter = noise(rng, size, 11, 4, gain=0.75)
    picture = recolour(litter, stops) * (0.75 + 0.5 * noise(rng, size, 4, 2))[:, :, None]
    for stop in stops:
        leaves = [
            blob(rng, size, (rng.random(), rng.random()), rng.uniform(0.03, 0.06), 0.15, rng.uniform(2, 3.5))
            for _ in range(5)
        ]
        picture = blend(np.asarray(picture, dtype=np.float32), jitter(rng, stop, 0.05), union(*leaves), 0.6)
    centre = (rng.uniform(0.4, 0.6), rng.uniform(0.42, 0.58))
    shape = _creature(rng, size, centre, rng.uniform(0.13, 0.2))
    hide = recolour(noise(rng, size, 7, 2, stretch=rng.choice([0.3, 3.0])), stops) * np.float32(rng.uniform(1.15, 1.4))
    relief = np.clip(distance_from(shape) / 0.04, 0, 1)
    hide = hide * (0.5 + 0.6 * blur(np.asarray(relief, dtype=np.float32), 0.01))[:, :, None]
    cast = np.roll(blur(shape, 0.012), size // 40, axis=0)
    picture = blend(np.asarray(picture, dtype=np.float32), (0.03, 0.03, 0.02), cast, 0.6)
    picture = blend(picture, np.asarray(hide, dtype=np.float32), blur(shape, 0.004), 0.97)
    return finish(rng, picture, 0.015, 0.002), shape > 0.5


@register_scene("fields")
def fields(rng: Generator, size: int) -> Drawing:
    """Farmland from above: a patchwork of fields with crop rows and roads; the object is a dark lake."""
    x, y = grid(size)
    seeds = rng.random((14, 2))
    bent_x, bent_y = x + 0.02 * noise(rng, size, 5, 2), y + 0.02 * noise(rng, size, 5, 2)
    away = np.stack([np.maximum(np.abs(bent_x - a), np.abs(bent_y - b) * 0.8) for a, b in seeds])
    owner = away.argmin(axis=0)
    tones = np.array([jitter(rng, _CROPS[int(rng.integers(len(_CROPS)))], 0.04) for _ in seeds], dtype=np.float32)
    angles = rng.uniform(0, math.pi, len(seeds))[owner]
    rows = np.sin((x * np.cos(angles) + y * np.sin(angles)) * rng.uniform(150, 220))
    picture = tones[owner] * (0.9 + 0.07 * rows + 0.15 * (noise(rng, size, 10, 3) - 0.5))[:, :, None]
    nearest = np.partition(away, 1, axis=0)
    hedge = ((nearest[1] - nearest[0]) < 0.012).astype(np.float32)
    picture = blend(np.asarray(picture, dtype=np.float32), (0.16, 0.24, 0.12), blur(hedge, 0.003), 0.8)
    bend = np.array([(a, 0.2 + 0.6 * rng.random()) for a in np.linspace(-0.1, 1.1, 4)])
    picture = blend(picture, (0.82, 0.79, 0.72), curve(size, bend, 0.016))
    centre, radius = (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)), rng.uniform(0.12, 0.25)
    shape = blob(rng, size, centre, radius, 0.5, rng.uniform(1, 1.8))
    water = recolour(noise(rng, size, 5, 3), [(0.04, 0.13, 0.20), (0.08, 0.24, 0.30)])
    picture = blend(picture, (0.70, 0.64, 0.48), np.clip(blur(shape, 0.012) * 2, 0, 1), 0.7)
    picture = blend(picture, water, blur(shape, 0.003))
    return finish(rng, picture, 0.015), shape > 0.5
