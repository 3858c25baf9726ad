"""The selector of a bank without modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from samcl_core.selectors.base import Choice
from samcl_core.selectors.choosing import plain_choice

__all__ = ["PlainSelector"]


class PlainSelector:
    """Answers plain SAM to everything: there is no module yet."""

    kind = "plain"
    domains: tuple[str, ...] = ()

    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) embeddings to plain, with confidence 1 and novelty 0."""
        return plain_choice(embeddings)

    def to(self, device: Any) -> PlainSelector:
        """Nothing to move; returns itself."""
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The kind, and no tensor."""
        return {"kind": self.kind}, {}
