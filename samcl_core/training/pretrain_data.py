"""Batches for pretraining: drawn scenes with prompted objects, each step drawn alone from its own seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from samcl_core.backbones.base import FRAME_PX, Prompts
from samcl_core.backbones.nano import NANO
from samcl_core.training.leaves import draw_leaves
from samcl_core.training.pretrain_options import PretrainOptions

__all__ = ["PretrainBatch", "draw_batch"]


@dataclass
class PretrainBatch:
    """Scenes with prompted objects.

    Attributes:
        images: (B, 3, S, S) float, 0..255.
        layers: (B, S, S) int64, the object of every pixel.
        masks: (B * K, S, S) float 0 or 1, the K objects of scene 0 first.
        prompts: B * K prompts in the 1024 frame.
        weight: (B * K,) 1 where the object is large enough to be asked for, else 0.
    """

    images: Tensor
    layers: Tensor
    masks: Tensor
    prompts: Prompts
    weight: Tensor


def draw_batch(options: PretrainOptions, step: int, device: str = "cpu") -> PretrainBatch:
    """Batch number ``step``: the same for the same seed and step, whatever was drawn before."""
    generator = torch.Generator(device=device).manual_seed(options.seed * 1_000_003 + step)
    pick = _Pick(generator)
    # Objects of several strongly different parts come once the network finds simple ones.
    scenes = draw_leaves(
        options.batch_size,
        NANO.image_size,
        generator,
        num_layers=2 + pick.below(9),
        has_parts=step >= options.guided,
    )
    masks, weight = _objects(scenes.layers, options.objects, generator)
    prompts = _prompts(masks, pick, generator)
    return PretrainBatch(scenes.images, scenes.layers, masks, prompts, weight)


class _Pick:
    """Choices that hold for the whole batch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator, device=self.generator.device))


def _objects(layers: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` layers a scene, larger ones more often: masks (B * count, S, S) and which are worth asking for."""
    size = layers.shape[-1]
    areas = F.one_hot(layers.flatten(1), int(layers.max()) + 1).sum(1).float() / size**2
    odds = areas.sqrt() * ((areas > 0.008) & (areas < 0.7))
    odds[:, 0] *= 0.1  # the background is rarely what a person points at
    chosen = torch.multinomial(odds + 1e-6, count, replacement=True, generator=generator)
    masks = (layers[:, None] == chosen[..., None, None]).flatten(0, 1).float()
    return masks, (odds.gather(1, chosen).flatten() > 0).float()


def _prompts(masks: Tensor, pick: _Pick, generator: torch.Generator) -> Prompts:
    """Points, sometimes with background points or a jittered box; one kind for the whole batch."""
    kind = pick.below(10)
    num_points = (1, 2, 3, 3, 3, 3, 5, 3, 0, 0)[kind]
    num_background = 2 if kind == 7 else 0
    inside = _draw_points(masks, num_points, generator)
    outside = _draw_points(1 - masks, num_background, generator)
    labels = torch.cat([inside.new_ones(inside.shape[:2]), inside.new_zeros(outside.shape[:2])], 1).long()
    return Prompts(torch.cat([inside, outside], 1), labels, _boxes(masks, generator) if kind >= 8 else None)


def _draw_points(masks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(N, count, 2) pixel centres inside ``masks`` (N, S, S), in the 1024 frame."""
    size = masks.shape[-1]
    if count == 0:
        return masks.new_zeros(len(masks), 0, 2)
    cells = torch.multinomial(masks.flatten(1) + 1e-12, count, replacement=True, generator=generator)
    return (torch.stack([cells % size, cells // size], -1) + 0.5) * (FRAME_PX / size)


def _boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 4) boxes around ``masks`` in the 1024 frame, each side moved by up to a tenth of the box."""
    size = masks.shape[-1]
    columns, rows = masks.amax(1) > 0, masks.amax(2) > 0
    left, top = columns.int().argmax(1), rows.int().argmax(1)
    right, bottom = size - columns.flip(1).int().argmax(1), size - rows.flip(1).int().argmax(1)
    box = torch.stack([left, top, right, bottom], 1).float()
    extent = torch.stack([right - left, bottom - top, right - left, bottom - top], 1)
    moved = box + extent * 0.1 * (2 * torch.rand(box.shape, generator=generator, device=box.device) - 1)
    return moved.clamp(0, size - 1e-3) * (FRAME_PX / size)
