"""All modules of a bank as one set of tensors, so that one pass can serve a batch of mixed domains."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.bank.bank import Bank
from samcl_core.bank.module import Module
from samcl_core.errors import BankError

__all__ = ["check_modules", "stack_modules"]


def stack_modules(bank: Bank, adapter: Adapter) -> ModuleTensors:
    """Tensors of shape (M + 1, ...): row 0 changes nothing (plain SAM), row k + 1 is module k of ``bank.names``.

    So a selector's index plus one is the row.

    Args:
        bank: M modules, 0 or more.
        adapter: the one that the modules were trained with.

    Raises:
        BankError: a module is of another kind, or has other settings or shapes than ``adapter``.
    """
    check_modules(bank.modules, adapter)
    rows = [adapter.null(), *(module.weights for module in bank.modules)]
    return {name: torch.stack([row[name] for row in rows]) for name in adapter.shapes()}


def check_modules(modules: Sequence[Module], adapter: Adapter) -> None:
    """See that all modules are of ``adapter``.

    Raises:
        BankError: a module is of another kind, or has other settings or shapes.
    """
    parameters, shapes = adapter.parameters(), dict(sorted(adapter.shapes().items()))
    for module in modules:
        for what, left, right in (
            ("kind", module.kind, adapter.kind),
            ("parameters", module.parameters, parameters),
            ("tensors", module.shapes, shapes),
        ):
            if left != right:
                raise BankError(
                    f"module {module.domain} has {what} {left}, the adapter {adapter.kind} has {right}",
                    hint=f"samcl step train {module.domain}",
                )
