"""What every selector is: from a selector embedding to a module, or to "none of these" (plain SAM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["PLAIN", "Choice", "Selector"]

PLAIN = "plain"
"""The answer that means: no module, the untouched backbone. Never a domain's name."""


@dataclass(frozen=True)
class Choice:
    """What a selector answers for a batch of embeddings.

    Attributes:
        index: (B,) int64 into the selector's ``domains``, -1 for plain SAM (natural images, or none of these).
        confidence: (B,) float in 0..1, probability of the answer given.
        novelty: (B,) float >= 0, distance to the nearest known class divided by its threshold: above 1 the image
            fits no known domain.
    """

    index: Tensor
    confidence: Tensor
    novelty: Tensor


class Selector(Protocol):
    """A fitted selector.

    Attributes:
        kind: ``plain`` (no module yet), ``mlp``, ``gaussian`` or ``tokens``.
        domains: names that ``Choice.index`` refers to, in the order of the bank.
    """

    kind: str
    domains: tuple[str, ...]

    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) float embeddings to a choice each; for ``tokens`` the queries of the images in place of embeddings.

        The answer never depends on other rows of the batch.
        """
        ...

    def to(self, device: Any) -> Selector:
        """Move the tensors; returns itself."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors ``load_selector`` builds it from; ``gaussian`` needs the bank's state, too."""
        ...


Embeddings = Mapping[str, Tensor]
