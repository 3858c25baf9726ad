"""One transformer block of an official encoder, taken apart so that a module can act on its attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.backbones.attention import relative_attention
from samcl_core.backbones.base import SuffixHooks

__all__ = ["attend", "join_windows", "relative_bias", "relative_parts", "run_block", "split_windows"]


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


def relative_parts(attn: Any, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """SAM's decomposed relative positions: the bias of each query for the rows and for the columns of keys.

    Args:
        attn: an attention of ``segment_anything`` with relative positions.
        q: (B, heads, h * w, d) queries, not scaled.
        height: h.
        width: w.

    Returns:
        (B, heads, h * w, h) and (B, heads, h * w, w).
    """
    rows = torch.arange(height, device=q.device)
    columns = torch.arange(width, device=q.device)
    grid = q.reshape(*q.shape[:2], height, width, -1)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, _table(attn.rel_pos_h, height)[rows[:, None] - rows + height - 1])
    by_column = torch.einsum(
        "bnhwc,wkc->bnhwk", grid, _table(attn.rel_pos_w, width)[columns[:, None] - columns + width - 1]
    )
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def relative_bias(attn: Any, q: Tensor, height: int, width: int) -> Tensor | None:
    """``relative_parts`` as one additive bias, (B, heads, h * w, h * w); ``None`` where ``attn`` has none (SAM 2)."""
    if not getattr(attn, "use_rel_pos", False):
        return None
    by_row, by_column = relative_parts(attn, q, height, width)
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)


def _table(positions: Tensor, size: int) -> Tensor:
    """(2 * size - 1, d) relative positions, stretched linearly where the checkpoint has another number."""
    length = 2 * size - 1
    if len(positions) == length:
        return positions
    return F.interpolate(positions.T[None], size=length, mode="linear")[0].T


def attend(attn: Any, x: Tensor, index: int, hooks: SuffixHooks | None = None) -> Tensor:
    """What ``attn(x)`` computes, with the modules' projections and their additional keys and values.

    It takes less time and memory than the official code, which computes whole matrices of scores.

    Args:
        attn: an attention of either official package that keeps width and resolution.
        x: (B * W, h, w, C), as in ``SuffixHooks.attention``.
        index: the block's number.
        hooks: what acts, where it does so inside of attention; its ``project`` and ``context`` are called.

    Returns:
        (B * W, h, w, C); equal to ``attn(x)`` within rounding when the hooks change nothing.
    """
    batch, height, width, _ = x.shape
    qkv: Tensor = attn.qkv(x)
    if hooks is not None:
        qkv = hooks.project(index, x, qkv)
    q, k, v = qkv.reshape(batch, height * width, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    more = None if hooks is None else hooks.context(index)
    if more is not None:
        bias = _bias_with_context(relative_bias(attn, q, height, width), q, *more)
        k, v = (torch.cat([_heads(part, batch, attn.num_heads), own], 2) for part, own in ((more[0], k), (more[1], v)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    elif getattr(attn, "use_rel_pos", False):
        out = relative_attention(q, k, v, *relative_parts(attn, q, height, width))
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    projected: Tensor = attn.proj(out.transpose(1, 2).reshape(batch, height, width, -1))
    return projected


def _heads(tokens: Tensor, batch: int, heads: int) -> Tensor:
    """(B, P, C) tokens to (B * W, heads, P, C / heads): the same in every window of an image."""
    split = tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)
    return split.repeat_interleave(batch // len(tokens), 0)


def _bias_with_context(bias: Tensor | None, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The bias (B * W, heads, T, P + T) for P more tokens before T own ones: minus infinity for those that are none."""
    batch, heads, own, _ = q.shape
    is_none = ~(keys.detach().any(-1) | values.detach().any(-1))
    more = q.new_zeros(is_none.shape).masked_fill(is_none, -torch.inf)
    more = more.repeat_interleave(batch // len(more), 0)[:, None, None]
    if bias is None:
        return F.pad(more, (0, own)).expand(-1, heads, own, -1)
    return torch.cat([more.expand(-1, heads, own, -1), bias], -1)


def run_block(block: Any, x: Tensor, index: int, hooks: SuffixHooks | None) -> Tensor:
    """What ``block(x)`` computes, with the hooks at its input, inside its attention and before the residual.

    Serves the blocks of ``segment_anything`` and those of SAM 2's trunk that keep width and resolution: their forward
    passes are the same in eval mode.

    Args:
        block: a block with ``norm1``, ``attn``, ``norm2``, ``mlp`` and ``window_size``.
        x: (B, H, W, C) tokens.
        index: the block's number, as in ``AdapterSite.blocks``.
        hooks: what acts; ``None`` for nothing.

    Returns:
        (B, H, W, C) tokens.
    """
    if hooks is not None:
        x = hooks.block_input(index, x)
    normed: Tensor = block.norm1(x)
    if block.window_size > 0:
        normed = split_windows(normed, block.window_size)
    attended = attend(block.attn, normed, index, hooks if hooks is not None and hooks.is_inside else None)
    if hooks is not None:
        attended = hooks.attention(index, normed, attended)
    if block.window_size > 0:
        attended = join_windows(attended, x.shape[1], x.shape[2])
    x = x + attended
    mixed: Tensor = block.mlp(block.norm2(x))
    return x + mixed
