"""SAM's attention with decomposed relative positions, without a (tokens x tokens) matrix that is ever held whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.backbones.blocked import BlockedAttention

__all__ = ["joined_attention", "relative_attention"]

_CPU_CHUNK = 1 << 20
"""Scores computed at a time on the CPU: 4 MiB, which stay in the cache from the product to the weighted sum."""
_DEVICE_CHUNK = 1 << 28
_MANY = 2048
"""Tokens from which on a head of its own keeps each core busy."""
_KEPT = 1 << 24
"""Weights of a block that are kept for the gradient: 64 MiB, an image's windows in ViT-B. More are computed anew."""


def relative_attention(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d) + by_row + by_column) v`` for tokens on a grid of h x w, as SAM's image encoder has it.

    The bias of query t and the key in row i and column j is ``by_row[t, i] + by_column[t, j]`` (Li et al., MViTv2,
    arXiv 2112.01526, section 4.1). The official code adds it to a matrix of all scores: 805 MB an image in a block of
    ViT-B with global attention, several times over, and kept for the gradient. Here scores live in chunks, forward and
    backward, and gradients compute them anew. In half precision on a GPU the bias goes into the product itself:
    ``[q / sqrt(d), by_row, by_column]`` times ``[k, one-hot row, one-hot column]``, which the fused kernels compute.

    Args:
        q: (B, H, h * w, d) queries, not scaled.
        k: (B, H, h * w, d) keys.
        v: (B, H, h * w, d) values.
        by_row: (B, H, h * w, h) bias of each query for the rows of keys.
        by_column: (B, H, h * w, w) the same for columns.

    Returns:
        (B, H, h * w, d).
    """
    if q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16):
        return joined_attention(q, k, v, by_row, by_column)
    is_blocked = q.device.type == "cpu" and q.shape[2] >= _MANY
    # Blocks add to sums again and again, which half precision is too coarse for.
    dtype = torch.promote_types(q.dtype, torch.float32) if is_blocked else q.dtype
    parts = (part.to(dtype).flatten(0, 1) for part in (q, k, v, by_row, by_column))
    with torch.autocast(q.device.type, enabled=False):
        out: Tensor = (BlockedAttention if is_blocked else _Chunked).apply(*parts)
    return out.to(q.dtype).reshape(q.shape)


def joined_attention(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """``relative_attention`` as one call of torch's attention, with the bias as further channels."""
    height, width, dim = by_row.shape[-1], by_column.shape[-1], q.shape[-1]
    rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    places = torch.cat([rows, columns], 1).expand(*k.shape[:2], -1, -1)
    query = torch.cat([q * dim**-0.5, by_row.to(q.dtype), by_column.to(q.dtype)], -1)
    key = torch.cat([k, places], -1)
    # Fused kernels want one width for all three, a multiple of 8.
    wide = -(-key.shape[-1] // 8) * 8
    query, key, value = (F.pad(part, (0, wide - part.shape[-1])) for part in (query, key, v))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :dim]


class _Chunked(torch.autograd.Function):
    """Over N = B * H heads: (N, T, d) queries, keys and values, (N, T, h) and (N, T, w) biases."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        weights = _Weights(q, k, by_row, by_column, is_kept=any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, by_row, by_column, weights.kept)
        out = torch.empty_like(q)
        for heads, tokens in weights.chunks():
            torch.bmm(weights.of(heads, tokens), v[heads], out=out[heads, tokens])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, by_row, by_column, kept = ctx.saved_tensors
        all_weights = _Weights(q, k, by_row, by_column, kept=kept)
        of_q, of_row, of_column = torch.empty_like(q), torch.empty_like(by_row), torch.empty_like(by_column)
        of_k, of_v = torch.zeros_like(k), torch.zeros_like(v)
        buffer = torch.empty_like(all_weights.scores)
        for heads, tokens in all_weights.chunks():
            weights, part = all_weights.of(heads, tokens), grad[heads, tokens]
            of_v[heads].baddbmm_(weights.mT, part)
            of_scores = buffer[: weights.numel()].view_as(weights)
            torch.bmm(part, v[heads].mT, out=of_scores)
            torch.ops.aten._softmax_backward_data.out(of_scores, weights, -1, weights.dtype, grad_input=of_scores)
            torch.bmm(of_scores, k[heads], out=of_q[heads, tokens])
            of_k[heads].baddbmm_(of_scores.mT, q[heads, tokens], alpha=all_weights.scale)
            grid = of_scores.view(*of_scores.shape[:2], by_row.shape[-1], by_column.shape[-1])
            torch.sum(grid, -1, out=of_row[heads, tokens])
            torch.sum(grid, -2, out=of_column[heads, tokens])
        return of_q.mul_(all_weights.scale), of_k, of_v, of_row, of_column


class _Weights:
    """The softmax of some heads for some queries, one chunk after the other in the same memory.

    Attributes:
        scale: of the product of queries and keys.
        kept: (N, T, T) all weights, where they are few enough to be kept for the gradient; else ``None``.
        scores: memory of one chunk's scores.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        *,
        is_kept: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        self._q, self._k, self._by_row, self._by_column = q, k, by_row, by_column
        self.scale = float(q.shape[-1]) ** -0.5
        num_heads, num_tokens, _ = q.shape
        self._is_known = kept is not None
        is_kept = is_kept and num_heads * num_tokens**2 <= _KEPT
        self.kept = q.new_empty(num_heads, num_tokens, num_tokens) if is_kept else kept
        chunk = _CPU_CHUNK if q.device.type == "cpu" else _DEVICE_CHUNK
        self._num_queries = max(1, min(num_tokens, chunk // num_tokens))
        self._num_heads = max(1, min(num_heads, chunk // (num_tokens * self._num_queries)))
        self.scores = q.new_empty(self._num_heads * self._num_queries * num_tokens)
        self._last = torch.empty_like(self.scores) if self.kept is None else self.scores

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Heads and queries of each chunk."""
        num_heads, num_tokens, _ = self._q.shape
        for head in range(0, num_heads, self._num_heads):
            for token in range(0, num_tokens, self._num_queries):
                yield (
                    slice(head, min(head + self._num_heads, num_heads)),
                    slice(token, min(token + self._num_queries, num_tokens)),
                )

    def of(self, heads: slice, tokens: slice) -> Tensor:
        """(n, t, T) weights of a chunk, good until the next one is asked for."""
        if self._is_known and self.kept is not None:
            return self.kept[heads, tokens]
        row, column = self._by_row[heads, tokens], self._by_column[heads, tokens]
        num_scores = row[..., 0].numel() * self._k.shape[1]
        scores = self.scores[:num_scores].view(*row.shape[:2], -1)
        torch.add(row[..., :, None], column[..., None, :], out=scores.view(*row.shape, column.shape[-1]))
        scores.baddbmm_(self._q[heads, tokens], self._k[heads].mT, alpha=self.scale)
        last = self._last[:num_scores].view_as(scores) if self.kept is None else self.kept[heads, tokens]
        return torch.softmax(scores, -1, out=last)
