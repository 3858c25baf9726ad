"""One transformer block of an official encoder, taken apart so that a module can act on its attention."""

from __future__ import annotations

from typing import Any

from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor

from samcl_core.backbones.base import SuffixHooks

__all__ = ["run_block", "split_windows"]


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B * windows, window, window, C), row-major, zero-padded at the right and lower edge.

    ``window`` 0 leaves ``x`` whole.
    """
    if window == 0:
        return x
    windows: Tensor = window_partition(x, window)[0]
    return windows


def run_block(block: Any, x: Tensor, index: int, hooks: SuffixHooks | None) -> Tensor:
    """What ``block(x)`` computes, with ``hooks.attention`` between attention and residual.

    Serves the blocks of ``segment_anything`` and those of SAM 2's trunk that keep width and resolution: their forward
    passes are the same in eval mode.

    Args:
        block: a block with ``norm1``, ``attn``, ``norm2``, ``mlp`` and ``window_size``.
        x: (B, H, W, C) tokens.
        index: the block's number, as in ``AdapterSite.blocks``.
        hooks: what acts; ``None`` runs the official forward.

    Returns:
        (B, H, W, C) tokens.
    """
    if hooks is None:
        plain: Tensor = block(x)
        return plain
    shortcut, (height, width) = x, (x.shape[1], x.shape[2])
    x, padded = block.norm1(x), (height, width)
    if block.window_size > 0:
        x, padded = window_partition(x, block.window_size)
    x = hooks.attention(index, x, block.attn(x))
    if block.window_size > 0:
        x = window_unpartition(x, block.window_size, padded, (height, width))
    x = shortcut + x
    return x + block.mlp(block.norm2(x))
