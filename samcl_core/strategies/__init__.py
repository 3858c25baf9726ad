"""How knowledge of several domains is kept."""

from __future__ import annotations

from samcl_core.strategies.bank import base_bank, extend_bank

__all__ = ["base_bank", "extend_bank"]
