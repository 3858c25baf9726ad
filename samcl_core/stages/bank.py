"""The bank of a step: the bank before it, plus one module, plus the selector fitted again (but in a back-fill)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.bank import Bank, Module
from samcl_core.config import Params
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import Places
from samcl_core.stages.selecting import encoder_of, selector_input
from samcl_core.strategies import extend_bank

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``banks/<domain>``. Modules of earlier domains keep their bytes.

    With ``stream.<domain>.fit: false`` the bank gets the module and what a later fit needs, and fits nothing.
    """
    places = Places(root)
    step = params.stream[domain]
    before = Bank.load(places.bank(step.previous))
    module = Module.load(places.module(domain))
    encoder = encoder_of(params, module)
    learnt = selector_input(places, params, "learn", domain, None if encoder is None else encoder.backbone)
    bank = extend_bank(before, module, learnt, params.selector, params.seed, fit=step.fit, encoder=encoder)
    bank.save(places.bank(domain))
    return {"bank": bank.digest, "domains": list(bank.names), "waiting": list(bank.waiting)}
