"""How knowledge of several domains is kept."""

from __future__ import annotations

from samcl_core.strategies.bank import base_bank, extend_bank
from samcl_core.strategies.base import (
    Context,
    State,
    Strategy,
    Task,
    build_strategy,
    register_strategy,
    registered_strategies,
    segment,
)
from samcl_core.strategies.joint import Joint
from samcl_core.strategies.naive import Naive
from samcl_core.strategies.single import SingleAdapter

__all__ = [
    "Context",
    "Joint",
    "Naive",
    "SingleAdapter",
    "State",
    "Strategy",
    "Task",
    "base_bank",
    "build_strategy",
    "extend_bank",
    "register_strategy",
    "registered_strategies",
    "segment",
]

register_strategy(Naive)
register_strategy(Joint)
