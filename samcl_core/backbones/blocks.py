"""One transformer block of an official encoder, taken apart so that a module can act on its attention."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from samcl_core.backbones.base import SuffixHooks

__all__ = ["join_windows", "run_block", "split_windows"]


def split_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B * windows, window, window, C), row-major, zero-padded at the right and lower edge.

    The same as ``window_partition`` of both official packages.
    """
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    x = x.reshape(batch, x.shape[1] // window, window, x.shape[2] // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window, window, channels)


def join_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """What ``split_windows`` split, without the padding: (B, height, width, C)."""
    window, channels = windows.shape[1], windows.shape[3]
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(-1, rows, columns, window, window, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, channels)[:, :height, :width]


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
    normed: Tensor = block.norm1(x)
    if block.window_size > 0:
        normed = split_windows(normed, block.window_size)
    attended = hooks.attention(index, normed, block.attn(normed))
    if block.window_size > 0:
        attended = join_windows(attended, x.shape[1], x.shape[2])
    x = x + attended
    mixed: Tensor = block.mlp(block.norm2(x))
    return x + mixed
