"""Pictures of bodies: polyps in endoscopy, pigmented lesions in dermoscopy, cells in fluorescence microscopy."""

from __future__ import annotations

import math

import numpy as np

from samcl_core.domains.scenes.paint import (
    Field,
    Generator,
    Picture,
    blend,
    blob,
    blur,
    curve,
    distance_from,
    finish,
    grid,
    jitter,
    noise,
    recolour,
    spots,
    strokes,
    vignette,
)
from samcl_core.domains.scenes.registry import Drawing, register_scene

__all__ = ["cells", "lesion", "polyp"]


def _folds(rng: Generator, size: int, lumen: tuple[float, float]) -> Field:
    """Ring-shaped folds of a bowel wall around its dark lumen, 0..1."""
    x, y = grid(size)
    away = np.hypot(x - lumen[0], y - lumen[1]) + 0.10 * noise(rng, size, 3, 2)
    waves = 0.5 + 0.5 * np.sin(away * rng.uniform(18, 30) + rng.uniform(0, 6))
    return np.asarray(waves**3, dtype=np.float32)


def _vessels(rng: Generator, size: int, count: int) -> Field:
    """Winding thin lines that thin out."""
    total = np.zeros((size, size), dtype=np.float32)
    for _ in range(count):
        steps = np.cumsum(np.cumsum(rng.normal(0, 0.012, (14, 2)), axis=0), axis=0) * 0.6
        heading = rng.normal(0, 0.05, 2)
        points = rng.random(2) + steps + heading * np.arange(14)[:, None]
        total = np.maximum(total, curve(size, points, 0.007) * rng.uniform(0.4, 1))
    return blur(total, 0.003)


def _bump(weight: Field, height: float, light: tuple[float, float]) -> Field:
    """Shading of a dome over a shape, about -1..1, lit from ``light``."""
    dome = blur(np.sqrt(np.clip(distance_from(weight) / height, 0, 1)), 0.3 * height)
    down, across = np.gradient(dome)
    slope = -(across * light[0] + down * light[1]) * weight.shape[0] * height
    return np.asarray(np.tanh(1.5 * slope), dtype=np.float32)


@register_scene("polyp")
def polyp(rng: Generator, size: int) -> Drawing:
    """Endoscopy: wet pink bowel wall with ring folds and vessels, a dark round frame; the object is a domed polyp."""
    lumen = (rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.9))
    wall = recolour(noise(rng, size, 4), [jitter(rng, (0.62, 0.24, 0.20), 0.04), jitter(rng, (0.90, 0.52, 0.42), 0.04)])
    folds = _folds(rng, size, lumen)
    picture = blend(wall, (0.38, 0.10, 0.09), blur(folds, 0.01), 0.6)
    picture = blend(picture, (0.55, 0.08, 0.10), _vessels(rng, size, 9), 0.55)
    picture = blend(picture, (0.12, 0.02, 0.02), vignette(size, 0.13, 0.05, lumen), 0.95)
    centre = (rng.uniform(0.33, 0.67), rng.uniform(0.33, 0.67))
    radius = rng.uniform(0.12, 0.27)
    shape = blob(rng, size, centre, radius, 0.16, rng.uniform(1, 1.5))
    angle = rng.uniform(0, 2 * math.pi)
    light = (math.cos(angle), math.sin(angle))
    picture = blend(picture, (0.22, 0.03, 0.03), blur(shape, 0.03), 0.55)
    skin = recolour(noise(rng, size, 9), [jitter(rng, (0.78, 0.30, 0.26), 0.04), jitter(rng, (0.98, 0.62, 0.50), 0.03)])
    shade = _bump(shape, radius, light)
    body = skin * (1 + 0.4 * shade)[:, :, None]
    body = blend(body, (0.70, 0.10, 0.12), _vessels(rng, size, 4), 0.45)
    picture = blend(picture, body, blur(shape, 0.004))
    wet = blur(spots(rng, size, 10, (0.003, 0.012)) * noise(rng, size, 5), 0.004)
    bright = (centre[0] + 0.45 * radius * light[0], centre[1] + 0.45 * radius * light[1])
    glint = vignette(size, radius * 0.13, 0.008, bright)
    picture = blend(picture, (1.0, 0.97, 0.95), np.maximum(wet, glint * 0.9))
    frame = vignette(size, rng.uniform(0.52, 0.60), 0.015)
    picture = picture * (0.05 + 0.95 * frame[:, :, None]) * (0.75 + 0.25 * vignette(size, 0.4, 0.1)[:, :, None])
    return finish(rng, picture, 0.012, 0.002), (shape > 0.5) & (frame > 0.5)


@register_scene("lesion")
def lesion(rng: Generator, size: int) -> Drawing:
    """Dermoscopy: pale skin with pores and dark hair; the object is a brown mole of several tones, soft at the edge."""
    pale, warm = jitter(rng, (0.93, 0.78, 0.72), 0.03), jitter(rng, (0.84, 0.64, 0.56), 0.03)
    picture = recolour(noise(rng, size, 3, 5), [pale, warm])
    picture = picture - 0.05 * (noise(rng, size, size / 5, 2)[:, :, None] > 0.7)
    centre = (rng.uniform(0.38, 0.62), rng.uniform(0.38, 0.62))
    radius = rng.uniform(0.14, 0.29)
    shape = blob(rng, size, centre, radius, 0.28, rng.uniform(1, 1.6))
    tones = recolour(noise(rng, size, 6, 5, gain=0.65), [(0.16, 0.08, 0.06), (0.42, 0.23, 0.15), (0.62, 0.40, 0.28)])
    inner = np.clip(distance_from(shape) / (0.5 * radius), 0, 1)
    tones = tones * (1.15 - 0.35 * blur(inner, 0.02))[:, :, None]
    net = np.abs(noise(rng, size, 16, 2) - 0.5) < 0.06
    tones = blend(np.asarray(tones, dtype=np.float32), (0.14, 0.07, 0.05), net.astype(np.float32), 0.5)
    picture = blend(np.asarray(picture, dtype=np.float32), tones, blur(shape, 0.012), rng.uniform(0.85, 0.97))
    hair = strokes(rng, size, int(rng.integers(2, 16)), (0.3, 0.9), 0.006, rng.uniform(0, math.pi), 0.35)
    picture = blend(picture, (0.13, 0.09, 0.08), hair, 0.8)
    corners = vignette(size, rng.uniform(0.62, 0.85), 0.04)
    return finish(rng, picture * (0.35 + 0.65 * corners)[:, :, None], 0.012, 0.003), shape > 0.5


def _cell(rng: Generator, size: int, picture: Picture, shape: Field, glow: float) -> Picture:
    """Add one glowing cell: green body with fibres, brighter rim, blue nucleus."""
    depth = distance_from(shape)
    reach = max(float(depth.max()), 1e-3)
    fibres = noise(rng, size, 14, 3, stretch=rng.choice([0.3, 3.0]))
    body = (0.35 + 0.65 * fibres) * (0.55 + 0.45 * np.exp(-depth / (0.25 * reach)))
    light = recolour(body.astype(np.float32), [(0.0, 0.10, 0.02), (0.10, 0.75, 0.20), (0.55, 1.0, 0.45)])
    picture = np.maximum(picture, light * (glow * blur(shape, 0.004))[:, :, None])
    nucleus = blur((depth > 0.55 * reach).astype(np.float32), 0.012)
    return blend(picture, (0.15, 0.30, 0.95), nucleus, 0.85 * glow)


@register_scene("cells")
def cells(rng: Generator, size: int) -> Drawing:
    """Fluorescence microscopy: black ground, small dim cells; the object is the one large bright green cell."""
    picture = recolour(noise(rng, size, 4), [(0.0, 0.01, 0.03), (0.01, 0.05, 0.06)])
    centre = (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
    radius = rng.uniform(0.16, 0.27)
    shape = blob(rng, size, centre, radius, 0.42, rng.uniform(1, 1.8))
    for _ in range(int(rng.integers(4, 9))):
        spot = (rng.random(), rng.random())
        small = blob(rng, size, spot, rng.uniform(0.03, 0.055), 0.2)
        if math.hypot(spot[0] - centre[0], spot[1] - centre[1]) > radius * 1.5:
            picture = _cell(rng, size, picture, small, rng.uniform(0.25, 0.5))
    picture = _cell(rng, size, picture, shape, rng.uniform(0.8, 1.0))
    picture = np.asarray(picture + 0.25 * blur(picture, 0.04), dtype=np.float32)
    return finish(rng, picture, 0.02, 0.003), shape > 0.5
