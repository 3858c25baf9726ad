"""Evaluate the bank of a step: its row of the R matrix, and the new domain's column in the rows before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.bank import Bank
from samcl_core.config import Params
from samcl_core.files import staged_folder
from samcl_core.inference import Segmenter
from samcl_core.progress import Progress, silent
from samcl_core.stages.gallery import draw_gallery
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import BASE, Places
from samcl_core.stages.scores import Scores, embedded_digest, scored_digests

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``metrics/steps/<domain>.parquet`` and ``pictures/<domain>``.

    With ``domain`` learnt at step k: R[0, k] (plain SAM), R[k-1, k] (the bank before: what FT needs) and R[k, j] for
    every domain j learnt so far, the natural images and the unseen domains.
    """
    places = Places(root)
    cache = open_cache(root, params)
    step = params.steps().index(domain) + 1
    previous = params.stream[domain].previous
    bank = Bank.load(places.bank(domain), backbone_sha256=cache.backbone.sha256)
    plain, current = Segmenter(cache.backbone), Segmenter(cache.backbone, bank)

    scores = Scores(root, params, cache, progress)
    digests = scored_digests(places.scores(previous)) | {domain: embedded_digest(places, "learn", domain)}
    scores.add(plain, step=0, domain=domain, digest=digests[domain])
    if previous != BASE:
        before = Segmenter(cache.backbone, Bank.load(places.bank(previous), backbone_sha256=cache.backbone.sha256))
        scores.add(before, step=step - 1, domain=domain, digest=digests[domain])
    for name in bank.names:
        scores.add(current, step=step, domain=name, digest=digests[name])
    for role in ("natural", "unseen"):
        for name in params.names(role):
            scores.add(current, step=step, domain=name, digest=embedded_digest(places, role, name))

    with staged_folder(places.pictures(domain)) as folder:
        for name in (domain, *params.names("natural")):
            draw_gallery(folder / f"{name}.png", name, scores.samples(name), plain, current)
    scores.save(domain, bank.digest)
    return {"step": step, "bank": bank.digest, "scores": scores.brief("iou")}
