"""Selector embeddings of every image of a domain, and on the way its frozen prefixes into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.config import Params
from samcl_core.domains import Domain
from samcl_core.progress import Progress, silent
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import Places
from samcl_core.tensors import save_tensors

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``embeddings/<role>/<domain>.safetensors``: ``train`` (n, C) and ``test`` (m, C) float32.

    The file's metadata carries the data digests, so that whatever depends on it depends on images, masks and points.
    """
    places = Places(root)
    data = Domain(places.domain(domain))
    cache = open_cache(root, params)
    tensors = {split: cache.embeddings(data.samples(split), progress) for split in ("train", "test")}
    meta = {
        "domain": domain,
        "backbone_sha256": cache.backbone.sha256,
        "train_digest": data.data_digest(("train",)),
        "test_digest": data.data_digest(("test",)),
    }
    save_tensors(places.embeddings(params.domains[domain].role, domain), tensors, meta)
    return {"domain": domain, **{f"num_{split}": len(rows) for split, rows in tensors.items()}}
