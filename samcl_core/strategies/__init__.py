"""How knowledge of several domains is kept. One file a strategy, one line here to register it."""

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
from samcl_core.strategies.coda_prompt import CodaPrompt
from samcl_core.strategies.der import Der
from samcl_core.strategies.dualprompt import DualPrompt
from samcl_core.strategies.er import Er
from samcl_core.strategies.ewc import Ewc
from samcl_core.strategies.joint import Joint
from samcl_core.strategies.l2p import L2P
from samcl_core.strategies.lwf import Lwf
from samcl_core.strategies.naive import Naive
from samcl_core.strategies.o_lora import OLora
from samcl_core.strategies.selection import BankSelection, bank_of
from samcl_core.strategies.single import SingleAdapter

__all__ = [
    "L2P",
    "BankSelection",
    "CodaPrompt",
    "Context",
    "Der",
    "DualPrompt",
    "Er",
    "Ewc",
    "Joint",
    "Lwf",
    "Naive",
    "OLora",
    "SingleAdapter",
    "State",
    "Strategy",
    "Task",
    "bank_of",
    "base_bank",
    "build_strategy",
    "extend_bank",
    "register_strategy",
    "registered_strategies",
    "segment",
]

# The order of tables.
register_strategy(BankSelection)
register_strategy(Naive)
register_strategy(Joint)
register_strategy(Lwf)
register_strategy(Ewc)
register_strategy(Er)
register_strategy(Der)
register_strategy(OLora)
register_strategy(L2P)
register_strategy(DualPrompt)
register_strategy(CodaPrompt)
