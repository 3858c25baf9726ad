"""What a SAM-Adapter does to one batch: every adapted block's input gets a hint from the image's own details."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.rows import linear
from samcl_core.backbones.base import AdapterSite, Hooks, Prefix, PrefixPlan

__all__ = ["SAM_ADAPTER_PLAN", "SamAdapterHooks"]

SAM_ADAPTER_PLAN = PrefixPlan(side=("high_frequency", "patches"))


class SamAdapterHooks(Hooks):
    """``SuffixHooks`` of one batch (SAM-Adapter, arXiv 2304.09148, equation 1).

    ``P_i = up(GELU(tune_i(F)))`` is added to the input of block i, where ``F`` is a projection of the patch embedding
    plus a patch embedding of the image's high frequencies, and ``up`` is shared by all blocks.

    Args:
        tensors: one module's tensors for all, or (B, ...) one module's for each sample.
        site: where they act.
        is_stacked: the tensors have the leading dimension of the batch.
    """

    plan = SAM_ADAPTER_PLAN

    def __init__(self, tensors: Mapping[str, Tensor], site: AdapterSite, *, is_stacked: bool) -> None:
        self._tensors = tensors
        self._grid = site.grid
        self._lead = 1 if is_stacked else 0
        self._order = {block: position for position, block in enumerate(site.blocks)}
        self._features: Tensor

    def begin(self, prefix: Prefix) -> None:
        """Make the features ``F`` of the batch.

        Raises:
            BankError: the prefix lacks the side features.
        """
        super().begin(prefix)
        dtype = self._tensors["up.weight"].dtype
        details = _patches(prefix.side["high_frequency"].to(dtype), self._grid)
        weight, bias = self._layer("frequency")
        details = linear(details, weight.flatten(1 + self._lead), bias)
        self._features = linear(prefix.side["patches"].to(dtype).flatten(1, 2), *self._layer("embedding")) + details

    def block_input(self, block: int, x: Tensor) -> Tensor:
        """(B, G, G, C) tokens plus the hint."""
        hidden = F.gelu(linear(self._features, *self._layer(f"tune_{self._order[block]:03d}")))
        return x + linear(hidden, *self._layer("up")).reshape(x.shape)

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]


def _patches(pixels: Tensor, grid: int) -> Tensor:
    """(B, 3, S, S) to (B, G * G, 3 * p * p) for patches of p = S / G, values in the order of a kernel (3, p, p)."""
    batch, channels, size, _ = pixels.shape
    cut = pixels.reshape(batch, channels, grid, size // grid, grid, size // grid)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)
