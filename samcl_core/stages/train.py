"""Train one domain's module on cached prefixes. It reads its own domain and nothing of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core import __version__
from samcl_core.adapters import build_adapter
from samcl_core.bank import Module, pack
from samcl_core.config import Params
from samcl_core.domains import Domain
from samcl_core.files import write_json
from samcl_core.progress import Progress, silent
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import Places
from samcl_core.stages.train_processes import train_together
from samcl_core.training import clear_checkpoint, train_module
from samcl_core.training.distributed import is_first, is_launched, joined

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``modules/<domain>`` and the training curve. A killed run continues at its last checkpoint.

    With ``train.processes`` above 1, or started by ``torchrun``, several processes train the module together.
    """
    num = params.train_of(domain).processes
    if num > 1 and not is_launched():
        return train_together(root, params, domain, num, progress)
    with joined(params.device) as device:
        return _train(root, params.model_copy(update={"device": device}), domain, progress)


def _train(root: Path, params: Params, domain: str, progress: Progress) -> dict[str, Any]:
    places = Places(root)
    data = Domain(places.domain(domain))
    samples = data.samples("train")
    options, train = params.adapter_of(domain), params.train_of(domain)
    cache = open_cache(root, params)
    adapter = build_adapter(options.kind, cache.backbone.site, **options.options())
    result = train_module(
        cache.backbone,
        adapter,
        cache,
        samples,
        train,
        seed=params.seed,
        checkpoint=places.checkpoint(domain),
        progress=progress,
    )
    if not is_first():
        return {"domain": domain}
    last = {key: value for key, value in result.curve[-1].items() if key != "seconds"}
    module = Module(
        domain=domain,
        kind=adapter.kind,
        parameters=adapter.parameters(),
        backbone=cache.backbone.name,
        backbone_sha256=cache.backbone.sha256,
        split=cache.backbone.site.blocks[0],
        data_digest=data.data_digest(("train",)),
        seed=params.seed,
        code=__version__,
        metrics={"num_train": len(samples), **last},
        tensors=pack(result.tensors, train.module_dtype),
    )
    module.save(places.module(domain))
    write_json(places.curve(domain), {"domain": domain, "module": module.digest, "epochs": result.curve})
    clear_checkpoint(places.checkpoint(domain))
    return {"domain": domain, "module": module.digest, "loss": last.get("total")}
