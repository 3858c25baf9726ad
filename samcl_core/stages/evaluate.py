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
from samcl_core.stages.places import Places
from samcl_core.stages.scores import Scores, embedded_digest, scored_digests
from samcl_core.training import PrefixCache

__all__ = ["run"]

_LATER = """This step belongs to a back-fill: it only added a module (`fit: false` in params.yaml).
Its pictures are with those of the next step that fitted the selector.
"""


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``metrics/steps/<domain>.parquet`` and ``pictures/<domain>``.

    With ``domain`` learnt at step k: R[0, k] (plain SAM), R[p, k] (the bank before it in row p, k - 1 without
    back-fills: what FT needs) and R[k, j] for every domain j learnt so far, the natural images and the unseen domains.
    A step that fits no selector (inside a back-fill) has no row k: the end of the back-fill scores its domain.
    """
    places = Places(root)
    cache = open_cache(root, params)
    step = params.steps().index(domain) + 1
    bank = Bank.load(places.bank(domain), backbone_sha256=cache.backbone.sha256)
    before = Bank.load(places.bank(params.stream[domain].previous), backbone_sha256=cache.backbone.sha256)
    known = scored_digests(places.scores(params.stream[domain].previous))

    scores = Scores(root, params, cache, progress)
    digests = known | {domain: embedded_digest(places, "learn", domain)}
    scores.add(Segmenter(cache.backbone), step=0, domain=domain, digest=digests[domain])
    # Within a back-fill the bank before answers as its last fit did: that is the row it stands for.
    if row := len(before.selector.domains):
        scores.add(Segmenter(cache.backbone, before), step=row, domain=domain, digest=digests[domain])
    if bank.waiting:
        scores.carry(known)
        with staged_folder(places.pictures(domain)) as folder:
            (folder / "README.md").write_text(_LATER, encoding="utf-8")
    else:
        current = Segmenter(cache.backbone, bank)
        for name in bank.names:
            scores.add(current, step=step, domain=name, digest=digests[name])
        for role in ("natural", "unseen"):
            for name in params.names(role):
                scores.add(current, step=step, domain=name, digest=embedded_digest(places, role, name))
        new = bank.names[len(before.selector.domains) :]
        _draw(places.pictures(domain), (*new, *params.names("natural")), cache, scores, current)
    scores.save(domain, bank.digest)
    return {"step": step, "bank": bank.digest, "scores": scores.brief("iou")}


def _draw(pictures: Path, names: tuple[str, ...], cache: PrefixCache, scores: Scores, current: Segmenter) -> None:
    plain = Segmenter(cache.backbone)
    with staged_folder(pictures) as folder:
        for name in names:
            draw_gallery(folder / f"{name}.png", name, scores.samples(name), plain, current)
