"""What every backbone is: a frozen prefix that depends on the image alone, and a suffix that modules adapt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from samcl_core.errors import BankError, ConfigError

__all__ = [
    "FRAME_PX",
    "AdapterSite",
    "Backbone",
    "Decoding",
    "Hooks",
    "Masks",
    "Prefix",
    "PrefixPlan",
    "Prompts",
    "Split",
    "SuffixHooks",
]

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
        heads: attention heads of the adapted blocks.
        sides: frozen side features that a prefix can hold on demand, by name, to their shape for one image.
        decoder: name to shape of every weight of the mask decoder.
        decoder_dim: channels of the mask decoder's input.
    """

    dim: int
    neck_dim: int | None
    grid: int
    blocks: tuple[int, ...]
    windows: tuple[int, ...]
    heads: int = 1
    sides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    decoder: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    decoder_dim: int = 0


Split = Literal["blocks", "encoder"]


@dataclass(frozen=True)
class PrefixPlan:
    """What an adapter needs of a prefix.

    Attributes:
        split: where the frozen part ends: ``blocks``, before the first adapted block; ``encoder``, after the neck, for
            adapters that act in the mask decoder alone.
        side: names of frozen side features (keys of ``AdapterSite.sides``), sorted.
    """

    split: Split = "blocks"
    side: tuple[str, ...] = ()

    def check(self, site: AdapterSite) -> None:
        """See that a backbone can give this.

        Raises:
            ConfigError: it has no such side feature.
        """
        if missing := [name for name in self.side if name not in site.sides]:
            raise ConfigError(
                "adapter",
                [f"it needs {', '.join(missing)} of the backbone, which gives {sorted(site.sides) or 'none'}"],
            )


@dataclass
class Prompts:
    """Prompts of a batch, in the 1024 x 1024 frame (x to the right, y down, pixels).

    Attributes:
        points: (B, N, 2) float32, 0 <= x, y < 1024.
        labels: (B, N) int64: 1 foreground, 0 background, -1 padding.
        boxes: (B, 4) float32 ``x0, y0, x1, y1`` or ``None``.
        masks: (B, 1, 4 G, 4 G) float32 logits of rough masks for a token grid of side G, or ``None``.
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return int(self.points.shape[0])

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on ``device``."""
        boxes = None if self.boxes is None else self.boxes.to(device)
        masks = None if self.masks is None else self.masks.to(device)
        return Prompts(self.points.to(device), self.labels.to(device), boxes, masks)


@dataclass
class Prefix:
    """What the frozen first part of a backbone says about a batch of images. It depends on the images alone.

    Attributes:
        tokens: (B, G, G, C) output of the last frozen layer: of the last block before the adapted ones or, where
            ``split`` is ``encoder``, of the neck (C is then the decoder's width).
        embedding: (B, C) selector embedding, the mean over the grid of the tokens before the first adapted block,
            wherever the split is.
        side: frozen features needed later, by name, batch first (SAM 2: ``high_res_0``, ``high_res_1``; further ones
            by ``PrefixPlan.side``).
        split: what ``tokens`` are, as in ``PrefixPlan``.
    """

    tokens: Tensor
    embedding: Tensor
    side: dict[str, Tensor] = field(default_factory=dict)
    split: Split = "blocks"

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Prefix:
        """The same prefix on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        side = {k: move(v) for k, v in self.side.items()}
        return Prefix(move(self.tokens), move(self.embedding), side, self.split)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Prefix:
        side = {k: v[rows] for k, v in self.side.items()}
        return Prefix(self.tokens[rows], self.embedding[rows], side, self.split)

    @staticmethod
    def cat(parts: Sequence[Prefix]) -> Prefix:
        """One batch from several, in order. ``parts`` must not be empty."""
        if not parts:
            raise ValueError("Prefix.cat needs at least one part")
        side = {k: torch.cat([p.side[k] for p in parts]) for k in parts[0].side}
        tokens, embedding = torch.cat([p.tokens for p in parts]), torch.cat([p.embedding for p in parts])
        return Prefix(tokens, embedding, side, parts[0].split)


@dataclass
class Masks:
    """Masks of a batch.

    Attributes:
        logits: (B, 1, h, w) float, low resolution, foreground where > 0 (a quarter of the model's input size).
        iou: (B, 1) float, the model's own estimate of each mask's IoU.
    """

    logits: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Decoding:
    """One call of the mask decoder: some rows of a batch that have equally many points.

    Attributes:
        decoder: the frozen official mask decoder.
        features: (b, D, G, G) image embeddings.
        position: (1, D, G, G) dense positional encoding.
        sparse: (b, N, D) embeddings of points and boxes.
        dense: (b, D, G, G) embeddings of mask prompts.
        rows: (b,) int64, which rows of the batch these are, on the device of ``features``.
        run: the decoder's own pass: ``run(decoding, decoder)`` with the frozen decoder or a stand-in of the same class.
        side: side features of these rows.
        training: the masks go into the loss of a training.
    """

    decoder: torch.nn.Module
    features: Tensor
    position: Tensor
    sparse: Tensor
    dense: Tensor
    rows: Tensor
    run: Callable[[Decoding, torch.nn.Module], Masks] = field(repr=False)
    side: dict[str, Tensor] = field(default_factory=dict)
    training: bool = False

    def plain(self) -> Masks:
        """What the frozen decoder answers."""
        return self.run(self, self.decoder)

    def __getitem__(self, chosen: Tensor) -> Decoding:
        """The call for some of its rows; ``chosen`` (c,) int64 counts within this call."""
        side = {name: value[chosen] for name, value in self.side.items()}
        features, sparse, dense = self.features[chosen], self.sparse[chosen], self.dense[chosen]
        return replace(self, features=features, sparse=sparse, dense=dense, rows=self.rows[chosen], side=side)


_DEFAULT_PLAN = PrefixPlan()


class SuffixHooks(Protocol):
    """What one batch's modules do inside the frozen suffix. ``Hooks`` implements all of it as "change nothing".

    What ``attention``, ``neck_input`` and ``neck_output`` adapt is fresh memory, and may be changed in place.

    Attributes:
        plan: the prefix that the modules need.
        is_inside: whether ``project`` or ``context`` act; only then attention is computed by ``blocks.attend``, which
            lets them in, instead of the official block.
    """

    plan: PrefixPlan
    is_inside: bool

    def begin(self, prefix: Prefix) -> None:
        """Called once, before anything else, with the batch's prefix."""
        ...

    def block_input(self, block: int, x: Tensor) -> Tensor:
        """Adapt (B, G, G, C) tokens before block ``block``."""
        ...

    def project(self, block: int, x: Tensor, qkv: Tensor) -> Tensor:
        """Adapt queries, keys and values: ``x`` as in ``attention``, ``qkv`` (B * W, h, w, 3 * C) computed from it."""
        ...

    def context(self, block: int) -> tuple[Tensor, Tensor] | None:
        """More keys and values for every query of a block: (B or 1, P, C) each, or ``None``.

        They have no place on the grid: the relative position of any query to them counts as 0. A token whose key and
        value are all zeros is none: nobody attends to it.
        """
        ...

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """Adapt the attention of one block.

        Args:
            block: index of the block in the encoder, one of ``AdapterSite.blocks``.
            x: (B * W, h, w, C) the block's normed attention input, already split into W windows
                (W = 1 and h = w = grid for global attention; windows are row-major and zero-padded at the
                right and lower edge, batch-major: all windows of image 0 come first).
            out: same shape, what the frozen attention computed from ``x``; under ``torch.no_grad`` it may be
                overwritten.

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

    def decode(self, call: Decoding) -> Masks:
        """Masks of one call of the decoder; ``call.plain()`` is the frozen answer."""
        ...


class Hooks:
    """``SuffixHooks`` that change nothing. An adapter overrides what it acts on."""

    plan = PrefixPlan()
    is_inside = False

    def begin(self, prefix: Prefix) -> None:
        """See that the prefix is what the modules need.

        Raises:
            BankError: it was made for another kind of adapter.
        """
        missing = [name for name in self.plan.side if name not in prefix.side]
        if prefix.split != self.plan.split or missing:
            raise BankError(
                f"the prefix ends after {prefix.split!r} with side features {sorted(prefix.side)}, "
                f"the modules need {self.plan.split!r} with {list(self.plan.side)}",
                hint="compute the prefix with the adapter's plan",
            )

    def block_input(self, block: int, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def project(self, block: int, x: Tensor, qkv: Tensor) -> Tensor:
        """``qkv``."""
        return qkv

    def context(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Nothing."""
        return None

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """``out``."""
        return out

    def neck_input(self, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def neck_output(self, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def decode(self, call: Decoding) -> Masks:
        """The frozen decoder's answer."""
        return call.plain()


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

    def prefix(self, pixels: Tensor, plan: PrefixPlan = _DEFAULT_PLAN) -> Prefix:
        """(B, 3, S, S) preprocessed pixels to the prefix that ``plan`` asks for, without gradients."""
        ...

    def suffix(
        self, prefix: Prefix, prompts: Prompts, hooks: SuffixHooks | None = None, *, training: bool = False
    ) -> Masks:
        """The adapted rest: remaining blocks, neck, prompt encoder, mask decoder for the whole batch in one pass.

        Gradients flow to whatever ``hooks`` holds, never to the backbone. ``training`` is what ``Decoding`` says to
        the hooks; SAM 2 itself then takes mask token 0 always, instead of the choice by stability.
        """
        ...

    def weights_digest(self) -> str:
        """sha256 over all parameters and buffers as they are now: proves that frozen weights stayed frozen."""
        ...
