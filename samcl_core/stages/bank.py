"""The bank of a step: the bank before it, plus one module, plus the selector fitted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.bank import Bank, Module
from samcl_core.config import Params
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import Places
from samcl_core.strategies import extend_bank
from samcl_core.tensors import load_tensors

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``banks/<domain>``. Modules of earlier domains keep their bytes."""
    places = Places(root)
    before = Bank.load(places.bank(params.stream[domain].previous))
    module = Module.load(places.module(domain))
    embeddings, _ = load_tensors(places.embeddings("learn", domain))
    bank = extend_bank(before, module, embeddings["train"], params.selector, params.seed)
    bank.save(places.bank(domain))
    return {"bank": bank.digest, "domains": list(bank.names)}
