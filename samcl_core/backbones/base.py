"""What every backbone is: a frozen prefix that depends on the image alone, and a suffix that modules adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["FRAME_PX", "AdapterSite", "Backbone", "Masks", "Prefix", "Prompts", "SuffixHooks"]

FRAME_PX = 1024
"""Points and boxes live in a square frame of this size, whatever the size of image and model (published layout)."""


@dataclass(frozen=True)
class AdapterSite:
    """Where modules can act inside a backbone.

    Attributes:
        dim: width of the adapted blocks (768 for ViT-B, 384 for SAM 2.1 tiny).
        neck_dim: channels after the neck, or ``None`` where modules do not act at the neck (SAM 2).
        grid: side of the token grid of the adapted blocks (64 for a 1024 px ViT-B).
        blocks: indices of the adapted blocks, first to last; the split is before ``blocks[0]``.
        windows: window side of each adapted block in tokens, 0 for global attention; as long as ``blocks``.
    """

    dim: int
    neck_dim: int | None
    grid: int
    blocks: tuple[int, ...]
    windows: tuple[int, ...]


@dataclass
class Prompts:
    """Prompts of a batch, in the 1024 x 1024 frame (x to the right, y down, pixels).

    Attributes:
        points: (B, N, 2) float32, 0 <= x, y < 1024.
        labels: (B, N) int64: 1 foreground, 0 background, -1 padding.
        boxes: (B, 4) float32 ``x0, y0, x1, y1`` or ``None``.
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return int(self.points.shape[0])

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on ``device``."""
        boxes = None if self.boxes is None else self.boxes.to(device)
        return Prompts(self.points.to(device), self.labels.to(device), boxes)


@dataclass
class Prefix:
    """What the frozen first part of a backbone says about a batch of images. It depends on the images alone.

    Attributes:
        tokens: (B, G, G, C) output of the last frozen block.
        embedding: (B, C) selector embedding, the mean of ``tokens`` over the grid.
        side: frozen features the decoder needs later, by name, batch first (SAM 2: ``high_res_0``, ``high_res_1``).
    """

    tokens: Tensor
    embedding: Tensor
    side: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Prefix:
        """The same prefix on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Prefix(move(self.tokens), move(self.embedding), {k: move(v) for k, v in self.side.items()})

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Prefix:
        return Prefix(self.tokens[rows], self.embedding[rows], {k: v[rows] for k, v in self.side.items()})

    @staticmethod
    def cat(parts: Sequence[Prefix]) -> Prefix:
        """One batch from several, in order. ``parts`` must not be empty."""
        if not parts:
            raise ValueError("Prefix.cat needs at least one part")
        side = {k: torch.cat([p.side[k] for p in parts]) for k in parts[0].side}
        return Prefix(torch.cat([p.tokens for p in parts]), torch.cat([p.embedding for p in parts]), side)


@dataclass
class Masks:
    """Masks of a batch.

    Attributes:
        logits: (B, 1, h, w) float, low resolution, foreground where > 0 (a quarter of the model's input size).
        iou: (B, 1) float, the model's own estimate of each mask's IoU.
    """

    logits: Tensor
    iou: Tensor


class SuffixHooks(Protocol):
    """What one batch's modules do inside the frozen suffix. Every method must be exact identity for a fresh module."""

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """Adapt the attention of one block.

        Args:
            block: index of the block in the encoder, one of ``AdapterSite.blocks``.
            x: (B * W, h, w, C) the block's normed attention input, already split into W windows
                (W = 1 and h = w = grid for global attention; windows are row-major and zero-padded at the
                right and lower edge, batch-major: all windows of image 0 come first).
            out: same shape, what the frozen attention computed from ``x``.

        Returns:
            The adapted attention output, shape of ``out``.
        """
        ...

    def neck_input(self, x: Tensor) -> Tensor:
        """Adapt (B, G, G, C) tokens before the neck."""
        ...

    def neck_output(self, x: Tensor) -> Tensor:
        """Adapt (B, neck_dim, G, G) features after the neck."""
        ...


class Backbone(Protocol):
    """A frozen promptable segmenter, split where the first adapted layer stands.

    Attributes:
        name: ``sam_vit_b``, ``sam2.1_hiera_tiny``, ``sam_nano`` ...
        sha256: digest of the checkpoint file; modules and banks refuse a backbone with another one.
        image_size: side of the square model input in pixels.
        site: where modules act.
        preprocessing: names the preprocessing; part of every cache key.
        is_pretrained: False for weights that were never trained (random or recipe weights).
    """

    name: str
    sha256: str
    image_size: int
    site: AdapterSite
    preprocessing: str
    is_pretrained: bool

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def module(self) -> torch.nn.Module:
        """The frozen network; every parameter has ``requires_grad=False`` and it is in eval mode."""
        ...

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights; returns itself."""
        ...

    def preprocess(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB to (3, S, S) float32, squashed to the model's square and normalised (on the CPU)."""
        ...

    def prefix(self, pixels: Tensor) -> Prefix:
        """(B, 3, S, S) preprocessed pixels to the prefix, without gradients."""
        ...

    def suffix(
        self, prefix: Prefix, prompts: Prompts, hooks: SuffixHooks | None = None, *, training: bool = False
    ) -> Masks:
        """The adapted rest: remaining blocks, neck, prompt encoder, mask decoder for the whole batch in one pass.

        Gradients flow to whatever ``hooks`` holds, never to the backbone. ``training`` matters for SAM 2 only: mask
        token 0 always, instead of the choice by stability.
        """
        ...

    def weights_digest(self) -> str:
        """sha256 over all parameters and buffers as they are now: proves that frozen weights stayed frozen."""
        ...
