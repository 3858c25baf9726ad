"""Naive sequence: one module, trained on one domain after the other with nothing against forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from samcl_core.strategies.single import SingleAdapter

__all__ = ["Naive"]


@dataclass(frozen=True)
class Naive(SingleAdapter):
    """Fine-tuning in the order of arrival, the lower bound of both papers' tables. It keeps nothing but the module.

    Called "sequential fine-tuning" in SAMCL (arXiv 2412.05012) and in CoSAM (arXiv 2412.06418).
    """

    name: ClassVar[str] = "naive"
    title: ClassVar[str] = "naive sequence"
    reference: ClassVar[str] = "lower bound; sequential fine-tuning in arXiv 2412.05012"
