"""What LoRA does to one batch: low-rank updates of the queries and values of every adapted block."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samcl_core.adapters.rows import linear
from samcl_core.backbones.base import AdapterSite, Hooks

__all__ = ["LoraHooks"]


class LoraHooks(Hooks):
    """``SuffixHooks`` of one batch (LoRA, arXiv 2106.09685, equation 3): W x + scale * B A x, for W of q and of v.

    Args:
        tensors: by block position p ``A_q_<p>``, ``A_v_<p>`` (r, C) and ``B_q_<p>``, ``B_v_<p>`` (C, r); for all
            samples, or with a leading dimension of the batch. r may be any number.
        site: where they act.
        scale: factor of every update.
    """

    is_inside = True

    def __init__(self, tensors: Mapping[str, Tensor], site: AdapterSite, scale: float = 1.0) -> None:
        self._tensors = tensors
        self._scale = scale
        self._order = {block: position for position, block in enumerate(site.blocks)}

    def project(self, block: int, x: Tensor, qkv: Tensor) -> Tensor:
        """``qkv`` with the updates of queries and values; shapes as in ``SuffixHooks.project``."""
        q, k, v = qkv.chunk(3, dim=-1)
        return torch.cat([q + self._update("q", block, x), k, v + self._update("v", block, x)], dim=-1)

    def _update(self, which: str, block: int, x: Tensor) -> Tensor:
        name = f"{which}_{self._order[block]:03d}"
        down, up = self._tensors[f"A_{name}"], self._tensors[f"B_{name}"]
        # One matrix a sample serves all windows of its image.
        tokens = x if down.dim() == 2 else x.reshape(len(down), -1, x.shape[-1])
        return linear(linear(tokens, down), up).reshape(x.shape) * self._scale
