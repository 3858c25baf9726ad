"""What SLoRA does to one batch: a low-rank addition to each adapted attention, with one shared way down."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samcl_core.adapters.rows import add_linear, linear, norm
from samcl_core.backbones.base import AdapterSite, Hooks

__all__ = ["SloraHooks"]


class SloraHooks(Hooks):
    """``SuffixHooks`` of one batch (SAMCL, arXiv 2412.05012, section "AugModule", without the prompt's branch).

    In adapted block i: ``attention'(x) = attention(x) + B_i(LN_i(A x))``.

    Args:
        tensors: one module's tensors for all, or (B, ...) one module's for each sample.
        batch: B, the number of images.
        site: where they act.
    """

    def __init__(self, tensors: Mapping[str, Tensor], batch: int, site: AdapterSite) -> None:
        self._tensors = tensors
        self._batch = batch
        self._order = {block: position for position, block in enumerate(site.blocks)}

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        """``out`` plus the module's part; shapes as in ``SuffixHooks.attention``."""
        place = f"{self._order[block]:03d}"
        low = linear(x.reshape(self._batch, -1, x.shape[-1]), *self._layer("A"))
        low = norm(low, *self._layer(f"norm_{place}"))
        base = out.reshape(self._batch, -1, out.shape[-1])
        return add_linear(base, low, *self._layer(f"B_{place}")).reshape(out.shape)

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
