"""Attention with decomposed relative positions over many tokens on a CPU: one head a core, in blocks of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samcl_core.backbones.lanes import in_lanes

__all__ = ["BlockedAttention"]

_SIDE = 512
"""Queries and keys of a block: 1 MiB of scores, few enough to stay near a core, enough for products at full speed."""
_LOG2_E = math.log2(math.e)


class BlockedAttention(torch.autograd.Function):
    """``attention.relative_attention`` over N = B * H heads.

    Takes (N, T, d) queries, keys and values, (N, T, h) and (N, T, w) biases; gives (N, T, d).

    No block knows a whole row of scores, so that the largest score and the sum of the weights are brought up to date
    from block to block; gradients compute the blocks anew from both (Dao et al., FlashAttention, arXiv 2205.14135,
    algorithms 1 and 4). Scores are logarithms to base 2, whose powers take half the time of ``exp``.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        blocks = _Blocks(q, k, by_row, by_column)
        out, largest, total = torch.empty_like(q), q.new_empty(*q.shape[:2], 1), q.new_empty(*q.shape[:2], 1)

        def attend(head: int) -> None:
            memory = blocks.memory()
            for queries in blocks.of_queries():
                top, mass, found = (part[head, queries] for part in (largest, total, out))
                top.fill_(-math.inf)
                mass.zero_()
                found.zero_()
                for rows, keys in blocks.of_keys():
                    weights = blocks.scores(head, queries, rows, keys, memory)
                    higher = torch.maximum(top, weights.amax(1, keepdim=True))
                    weights.sub_(higher).exp2_()
                    shrunk = top.sub_(higher).exp2_()
                    mass.mul_(shrunk).add_(weights.sum(1, keepdim=True))
                    found.mul_(shrunk).addmm_(weights, v[head, keys])
                    top.copy_(higher)
                found.div_(mass)

        in_lanes(attend, range(len(q)))
        ctx.save_for_backward(q, k, v, by_row, by_column, out, largest.add_(total.log2_()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, by_row, by_column, out, log_total = ctx.saved_tensors
        blocks = _Blocks(q, k, by_row - log_total / _LOG2_E, by_column)
        of_q, of_row, of_column = torch.zeros_like(q), torch.empty_like(by_row), torch.zeros_like(by_column)
        of_k, of_v = torch.zeros_like(k), torch.zeros_like(v)
        inside = torch.linalg.vecdot(grad, out)[..., None]

        def differentiate(head: int) -> None:
            memory, more = blocks.memory(), blocks.memory()
            for queries in blocks.of_queries():
                part, own = grad[head, queries], q[head, queries]
                for rows, keys in blocks.of_keys():
                    weights = blocks.scores(head, queries, rows, keys, memory).exp2_()
                    of_v[head, keys].addmm_(weights.T, part)
                    slope = more[: weights.numel()].view_as(weights)
                    torch.mm(part, v[head, keys].T, out=slope)
                    slope.sub_(inside[head, queries]).mul_(weights)
                    of_q[head, queries].addmm_(slope, k[head, keys])
                    of_k[head, keys].addmm_(slope.T, own, alpha=blocks.scale)
                    grid = slope.view(len(slope), -1, by_column.shape[-1])
                    torch.sum(grid, -1, out=of_row[head, queries, rows])
                    of_column[head, queries].add_(grid.sum(1))

        in_lanes(differentiate, range(len(q)))
        return of_q.mul_(blocks.scale), of_k, of_v, of_row, of_column


class _Blocks:
    """Queries by whole rows of keys of the grid.

    Attributes:
        scale: of the product of queries and keys.
    """

    def __init__(self, q: Tensor, k: Tensor, by_row: Tensor, by_column: Tensor) -> None:
        self.scale = float(q.shape[-1]) ** -0.5
        self._q, self._k = q * (self.scale * _LOG2_E), k
        self._by_row, self._by_column = by_row * _LOG2_E, by_column * _LOG2_E
        self._tokens, self._height, self._width = q.shape[1], by_row.shape[-1], by_column.shape[-1]
        self._rows = max(1, _SIDE // self._width)

    def memory(self) -> Tensor:
        """Room for one block."""
        memory: Tensor = self._q.new_empty(min(self._tokens, _SIDE) * self._rows * self._width)
        return memory

    def of_queries(self) -> Iterator[slice]:
        """The queries of each block."""
        return (slice(at, min(at + _SIDE, self._tokens)) for at in range(0, self._tokens, _SIDE))

    def of_keys(self) -> Iterator[tuple[slice, slice]]:
        """The rows of the grid whose keys are in each block, and these keys."""
        for first in range(0, self._height, self._rows):
            last = min(first + self._rows, self._height)
            yield slice(first, last), slice(first * self._width, last * self._width)

    def scores(self, head: int, queries: slice, rows: slice, keys: slice, memory: Tensor) -> Tensor:
        """(t, u) of a block, in ``memory``."""
        row, column = self._by_row[head, queries, rows], self._by_column[head, queries]
        scores: Tensor = memory[: len(row) * (keys.stop - keys.start)].view(len(row), -1)
        torch.add(row[:, :, None], column[:, None, :], out=scores.view(len(row), -1, self._width))
        scores.addmm_(self._q[head, queries], self._k[head, keys].T)
        return scores
