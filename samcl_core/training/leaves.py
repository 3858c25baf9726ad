"""Dead-leaves scenes for pretraining, drawn as tensor code on the device that trains.

Layers of textured shapes cover each other (Lee, Mumford and Huang 2001, "Occlusion models for natural images"); the
visible part of a layer is an object. A whole batch is drawn at once; scenes depend on the seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LeafScenes", "draw_leaves"]


@dataclass
class LeafScenes:
    """A batch of scenes.

    Attributes:
        images: (B, 3, S, S) float, 0..255.
        layers: (B, S, S) int64, the layer seen at each pixel, 0 the background.
    """

    images: Tensor
    layers: Tensor


def draw_leaves(
    num: int, size_px: int, generator: torch.Generator, *, num_layers: int = 14, has_parts: bool = False
) -> LeafScenes:
    """``num`` scenes of ``num_layers`` shapes on the generator's device.

    Ellipses, blobs, polygons, strips, thin lines and shapes of several limbs, with textures from noise and gratings,
    patches of a second texture, shading, cast and soft shadows that are no objects, blur and sensor noise. Some shapes
    take the texture below them, changed a little: camouflage. With ``has_parts`` half of the layers are objects of
    several parts that differ strongly: bands, spots and patches.
    """
    draw = _Draw(num, size_px, generator)
    images = draw.texture(draw.colour(), contrast=(5.0, 60.0))
    layers = torch.zeros(num, size_px, size_px, dtype=torch.long, device=draw.device)
    for layer in range(1, num_layers + 1):
        inside = draw.shape(shrink=1.0 - 0.45 * layer / num_layers)
        images = torch.where(
            inside[:, None], draw.skin(images, inside if has_parts else None), draw.cast(images, inside)
        )
        layers = torch.where(inside, layer, layers)
        if layer % 5 == 0:
            images = draw.shadow(images)
    return LeafScenes(draw.sensor(images), layers)


class _Draw:
    """Random pictures of one batch; every method draws for all samples at once."""

    def __init__(self, num: int, size_px: int, generator: torch.Generator) -> None:
        self.num, self.size, self.generator = num, size_px, generator
        self.device = generator.device
        axis = (torch.arange(size_px, device=self.device) + 0.5) / size_px * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(num, *shape) uniform in ``low``..``high``."""
        return low + (high - low) * torch.rand(self.num, *shape, generator=self.generator, device=self.device)

    def one(self) -> float:
        """One number in 0..1 for the whole batch."""
        return float(torch.rand((), generator=self.generator, device=self.device))

    def colour(self) -> Tensor:
        """(num, 3, 1, 1) colours, 0..255, often greyish."""
        grey = self.uniform(15, 240, 1, 1, 1)
        return (grey + self.uniform(-1, 1, 3, 1, 1) * self.uniform(0, 90, 1, 1, 1)).clamp(0, 255)

    def noise(self, cells: int) -> Tensor:
        """(num, 1, S, S) smooth noise of about unit deviation with ``cells`` cells a side."""
        coarse = torch.randn(self.num, 1, cells, cells, generator=self.generator, device=self.device)
        return F.interpolate(coarse, (self.size, self.size), mode="bicubic", align_corners=False)

    def rotated(self) -> tuple[Tensor, Tensor]:
        """Coordinates (num, S, S) about a random centre, turned by a random angle."""
        angle = self.uniform(0, math.pi, 1, 1)
        dx, dy = self.x - self.uniform(-1, 1, 1, 1), self.y - self.uniform(-1, 1, 1, 1)
        return dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()

    def grating(self) -> Tensor:
        """(num, 1, S, S) sine or square waves of unit height."""
        u, _ = self.rotated()
        wave = torch.sin(u * self.uniform(8, 60, 1, 1) + self.uniform(0, 6.3, 1, 1))
        return (wave.sign() if self.one() < 0.3 else wave)[:, None]

    def texture(self, colour: Tensor, contrast: tuple[float, float]) -> Tensor:
        """(num, 3, S, S) textured surface of a colour, with linear shading."""
        kind = self.one()
        if kind < 0.65:
            pattern = self.noise(int(4 * 2 ** (self.one() * 4)))
            if kind < 0.4:
                pattern = 0.6 * pattern + 0.6 * self.noise(self.size // 2)
        elif kind < 0.85:
            pattern = self.grating()
        else:
            pattern = torch.zeros(self.num, 1, self.size, self.size, device=self.device)
        tint = 1 + self.uniform(-0.4, 0.4, 3, 1, 1)
        shading = self.x * self.uniform(-25, 25, 1, 1) + self.y * self.uniform(-25, 25, 1, 1)
        return colour + pattern * tint * self.uniform(*contrast, 1, 1, 1) + shading[:, None]

    def skin(self, below: Tensor, inside: Tensor | None = None) -> Tensor:
        """Surface of the next shape: its own, or a changed copy of what lies below (one sample in four).

        Where ``inside`` (num, S, S) is given, half of the shapes consist of parts.
        """
        own = self.texture(self.colour(), contrast=(0.0, 45.0))
        if self.one() < 0.35:  # one object, two surfaces
            pattern = self.grating() if self.one() < 0.3 else self.noise(4 + int(self.one() * 8))
            own = torch.where(pattern > self.uniform(0.3, 0.9, 1, 1, 1), self.texture(self.colour(), (0.0, 20.0)), own)
        if inside is not None and self.one() < 0.5:
            for _ in range(1 + int(self.one() * 2)):
                own = torch.where(self.part(inside), self.texture(self.colour(), (0.0, 15.0)), own)
        moved = torch.roll(below, (self.size // 3, self.size // 4), (2, 3)) * self.uniform(0.75, 1.25, 3, 1, 1)
        hidden = self.uniform(0, 1, 1, 1, 1) < 0.25
        return torch.where(hidden, moved + self.uniform(-25, 25, 3, 1, 1), own)

    def part(self, inside: Tensor) -> Tensor:
        """(num, 1, S, S) bool: a band or a spot near the middle of a shape."""
        weight = inside.float()
        area = weight.sum((1, 2), keepdim=True).clamp(min=1)
        middle_x, middle_y = ((weight * axis).sum((1, 2), keepdim=True) / area for axis in (self.x, self.y))
        radius = (area / self.size**2).sqrt()  # about that of the shape: the frame is 2 wide
        angle = self.uniform(0, 2 * math.pi, 1, 1)
        away = radius * self.uniform(0, 1.2, 1, 1)
        dx, dy = self.x - middle_x - away * angle.cos(), self.y - middle_y - away * angle.sin()
        turn = self.uniform(0, math.pi, 1, 1)
        along, across = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
        thick = radius * self.uniform(0.15, 0.6, 1, 1)
        if self.one() < 0.5:
            return (across.abs() < thick)[:, None]
        return ((across / thick).square() + (along / (thick * self.uniform(1, 2, 1, 1))).square() < 1)[:, None]

    def shape(self, shrink: float) -> Tensor:
        """(num, S, S) bool: one kind of shape for the batch, another one each sample."""
        u, v = self.rotated()
        scale = (self.uniform(0.0, 1.0, 1, 1) ** 1.3 * 0.8 + 0.15) * shrink
        u, v = u / scale, v / (scale * self.uniform(0.35, 1.0, 1, 1))
        kind = self.one()
        if kind < 0.25:
            power = self.uniform(1.2, 5.0, 1, 1)
            return u.abs() ** power + v.abs() ** power < 1
        if kind < 0.45:
            return self._blob(u, v)
        if kind < 0.6:
            return self._polygon(u, v)
        if kind < 0.8:
            return self._limbs(u, v)
        return self._strip(u, v, thin=kind > 0.9)

    def _blob(self, u: Tensor, v: Tensor) -> Tensor:
        theta, radius = torch.atan2(v, u), (u * u + v * v).sqrt()
        edge = torch.ones_like(radius)
        for harmonic in range(2, 7):
            height = self.uniform(-0.5, 0.5, 1, 1) / harmonic
            edge = edge + height * torch.cos(harmonic * theta + self.uniform(0, 6.3, 1, 1))
        return radius < edge

    def _limbs(self, u: Tensor, v: Tensor) -> Tensor:
        inside = u * u + v * v < self.uniform(0.15, 0.6, 1, 1)
        for _ in range(2 + int(self.one() * 4)):
            angle = self.uniform(0, 2 * math.pi, 1, 1)
            long, thick = self.uniform(0.3, 0.8, 1, 1), self.uniform(0.1, 0.4, 1, 1)
            along = u * angle.cos() + v * angle.sin() - 0.8 * long
            across = v * angle.cos() - u * angle.sin()
            inside = inside | ((along / long).abs() ** 3 + (across / thick).abs() ** 3 < 1)
        return inside

    def _polygon(self, u: Tensor, v: Tensor) -> Tensor:
        corners = 3 + int(self.one() * 5)
        outside = torch.full_like(u, -1.0)
        for corner in range(corners):
            angle = 2 * math.pi * (corner + self.uniform(-0.3, 0.3, 1, 1)) / corners
            outside = torch.maximum(outside, u * angle.cos() + v * angle.sin() - self.uniform(0.5, 1.0, 1, 1))
        return outside < 0

    def _strip(self, u: Tensor, v: Tensor, *, thin: bool) -> Tensor:
        bend = self.uniform(-0.8, 0.8, 1, 1) * u * u + 0.25 * torch.sin(u * self.uniform(0, 5, 1, 1))
        width = self.uniform(0.12, 0.22, 1, 1) if thin else self.uniform(0.25, 0.5, 1, 1)
        return ((v + bend).abs() < width) & (u.abs() < self.uniform(1.2, 2.6, 1, 1))

    def cast(self, images: Tensor, inside: Tensor) -> Tensor:
        """The scene with the soft shadow that the next shape throws beside itself (one batch in two)."""
        if self.one() < 0.5:
            return images
        reach = 3 + 2 * int(self.one() * 4)
        soft = F.avg_pool2d(inside[:, None].float(), reach, stride=1, padding=reach // 2)
        moved = torch.roll(soft, (int(self.one() * 9) - 4, int(self.one() * 9) - 4), (2, 3))
        return images * (1 - moved * self.uniform(0.0, 0.6, 1, 1, 1))

    def shadow(self, images: Tensor) -> Tensor:
        """A soft darkening or brightening that follows no object."""
        soft = torch.sigmoid(4 * self.noise(4))
        return images * (1 + soft * self.uniform(-0.5, 0.25, 1, 1, 1))

    def sensor(self, images: Tensor) -> Tensor:
        """Blur, noise, gain and offset of a camera; clamped to 0..255."""
        images = images * self.uniform(0.75, 1.2, 1, 1, 1) + self.uniform(-20, 20, 1, 1, 1)
        soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        images = torch.lerp(images, soft, self.uniform(0, 1, 1, 1, 1))
        grain = torch.randn(images.shape, generator=self.generator, device=self.device)
        return (images + grain * self.uniform(0, 10, 1, 1, 1)).clamp(0, 255)
