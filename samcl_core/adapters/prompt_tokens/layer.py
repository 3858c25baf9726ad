"""What prompt tokens do to one batch: every query of an adapted block sees them beside the image's own tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samcl_core.backbones.base import Hooks
from samcl_core.errors import BankError

__all__ = ["PromptTokenHooks"]


class PromptTokenHooks(Hooks):
    """``SuffixHooks`` of one batch: more keys and values in the attention of some blocks, the same in every window.

    ``attention(Q, [P_k; K], [P_v; V])``: prefix tuning (arXiv 2101.00190), as DualPrompt (arXiv 2204.04799,
    equation 5) uses it in images. A token whose key and value are all zeros is none: nobody attends to it.

    Args:
        keys: by block (numbers as in ``AdapterSite.blocks``) (B, P, C), each sample's own, or (1, P, C), the same for
            all; P may differ from block to block. Blocks that are not named stay as they are.
        values: the same blocks and shapes.

    Raises:
        BankError: keys and values do not have the same blocks and shapes.
    """

    is_inside = True

    def __init__(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        found = [{block: tuple(part.shape) for block, part in sorted(parts.items())} for parts in (keys, values)]
        if found[0] != found[1] or any(len(shape) != 3 for shape in found[0].values()):
            raise BankError(f"keys have shapes {found[0]} and values {found[1]}, expected the same, (B, P, C) by block")
        self._keys = keys
        self._values = values

    def context(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of ``block``."""
        return (self._keys[block], self._values[block]) if block in self._keys else None
