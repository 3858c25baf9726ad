"""Step 0: the bank without modules, and plain SAM's scores on natural and unseen domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.config import Params
from samcl_core.inference import Segmenter
from samcl_core.progress import Progress, silent
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import BASE, Places
from samcl_core.stages.scores import Scores, embedded_digest
from samcl_core.stages.selecting import selector_input
from samcl_core.strategies import base_bank

__all__ = ["run"]


def run(root: Path, params: Params, domain: str = BASE, progress: Progress = silent) -> dict[str, Any]:
    """Write ``banks/base`` and row 0 of the R matrix for the domains that are never learnt."""
    places = Places(root)
    cache = open_cache(root, params)
    natural = {
        name: selector_input(places, params, "natural", name, cache.backbone) for name in params.names("natural")
    }
    bank = base_bank(cache.backbone.name, cache.backbone.sha256, natural, params.selector, params.seed)
    scores = Scores(root, params, cache, progress)
    plain = Segmenter(cache.backbone)
    for role in ("natural", "unseen"):
        for name in params.names(role):
            scores.add(plain, step=0, domain=name, digest=embedded_digest(places, role, name))
    bank.save(places.bank(BASE))
    scores.save(BASE, bank.digest)
    return {"bank": bank.digest, "natural": list(natural), "unseen": list(params.names("unseen"))}
