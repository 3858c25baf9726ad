"""What one method is measured on with one seed: domains, prefixes and modules. Laid out like a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from samcl_core import __version__
from samcl_core.adapters import Adapter, build_adapter
from samcl_core.bank import Module, pack
from samcl_core.benchmarks.methods import Method
from samcl_core.benchmarks.streams import StreamSpec, check_data
from samcl_core.config import Params
from samcl_core.domains import Domain, Sample
from samcl_core.domains.layout import SPLITS
from samcl_core.domains.synthetic import write_domain
from samcl_core.progress import Progress, silent
from samcl_core.stages import ingest, points
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import Places
from samcl_core.training import PrefixCache, clear_checkpoint, train_module

__all__ = ["Ground", "prepare_domains", "train_domain", "warm_prefixes"]

_UNSEEN_TRAIN = 2
"""Training pictures of a drawn domain that is never learnt; the layout wants some."""


@dataclass(frozen=True)
class Ground:
    """What one method is measured on.

    Attributes:
        root: output folder of the benchmark.
        spec: the stream.
        seed: of everything random.
        method: whose adapter, training and selector count.
        device: where to compute.
        progress: called after each piece of work.
    """

    root: Path
    spec: StreamSpec
    seed: int
    method: Method
    device: str
    progress: Progress = silent

    @property
    def folder(self) -> Path:
        """Where the seed's domains, prefixes and checkpoints are."""
        return self.root / "seeds" / f"seed-{self.seed}"

    @cached_property
    def params(self) -> Params:
        """Parameters of this seed and method."""
        return self.spec.params_of(self.seed, device=self.device, method=self.method)

    @cached_property
    def cache(self) -> PrefixCache:
        """Prefixes for the method's adapter, with the backbone. Drawn pictures differ from seed to seed."""
        return open_cache(self.folder if self.spec.is_drawn else self.folder.parent, self.params)

    @cached_property
    def adapter(self) -> Adapter:
        """The kind of module that is trained."""
        options = self.params.adapter
        return build_adapter(options.kind, self.cache.backbone.site, **options.options())

    def samples(self, domain: str, split: str) -> list[Sample]:
        """Samples of one split of a domain."""
        return Domain(Places(self.folder).domain(domain)).samples(split)

    def embeddings(self, domain: str, split: str) -> Tensor:
        """(n, C) selector embeddings."""
        return self.cache.embeddings(self.samples(domain, split), self.progress)

    @property
    def natural(self) -> dict[str, tuple[Sample, ...]]:
        """Training images of the natural domains that have some."""
        found = {name: tuple(self.samples(name, "train")) for name in self.spec.names("natural")}
        return {name: samples for name, samples in found.items() if samples}

    def module_folder(self, domain: str) -> Path:
        """Where the module of a domain is stored."""
        return self.root / "modules" / self.method.variant / domain / f"seed-{self.seed}"

    def modules(self) -> list[Module]:
        """The trained modules, in the order of the stream's file."""
        return [Module.load(self.module_folder(name)) for name in self.spec.names("learn")]


def prepare_domains(ground: Ground) -> dict[str, Any]:
    """Draw or read, ingest and prompt every domain, and compute its prefixes; what is there already stays as it is.

    Raises:
        DataError: folders are missing, or what is in them cannot be used.
    """
    places, counts = Places(ground.folder), {}
    has_all = all((places.domain(name) / "manifest.parquet").is_file() for name in ground.spec.domains)
    if not has_all:
        check_data(ground.spec)
    for name in ground.spec.domains:
        if not (places.domain(name) / "manifest.parquet").is_file():
            _ingest(ground, name)
        points.run(ground.folder, ground.params, name, ground.progress)
        counts[name] = Domain(places.domain(name)).data_digest()
    warm_prefixes(ground)
    return counts


def _ingest(ground: Ground, name: str) -> None:
    raw, source = Places(ground.folder).raw(name), ground.spec.folder_of(name)
    params = ground.params
    if source is None:
        spec = ground.spec
        num_train = _UNSEEN_TRAIN if spec.domains[name].role == "unseen" else spec.num_train
        num_val = spec.num_val if spec.domains[name].role == "learn" else 0
        scene = str(spec.domains[name].scene)
        write_domain(raw, scene, num_train + num_val, spec.num_test, spec.size_px, ground.seed, ground.progress)
    else:
        # The splits of real data are the same with every seed.
        params = params.model_copy(update={"seed": 0})
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.unlink(missing_ok=True)
        raw.symlink_to(source, target_is_directory=True)
    ingest.run(ground.folder, params, name, ground.progress)


def warm_prefixes(ground: Ground) -> dict[str, Any]:
    """Compute the prefixes of every image for the method's adapter; returns their numbers."""
    counts = {}
    for name in ground.spec.domains:
        counts[name] = sum(len(ground.embeddings(name, split)) for split in SPLITS)
    return counts


def train_domain(ground: Ground, domain: str) -> dict[str, Any]:
    """Train and store the module of one domain. With validation samples the best epoch on them is taken."""
    samples, backbone = ground.samples(domain, "train"), ground.cache.backbone
    checkpoint = Places(ground.folder).checkpoint(f"{ground.method.variant}-{domain}")
    result = train_module(
        backbone,
        ground.adapter,
        ground.cache,
        samples,
        ground.params.train,
        seed=ground.seed,
        checkpoint=checkpoint,
        val=ground.samples(domain, "val"),
        progress=ground.progress,
    )
    Module(
        domain=domain,
        kind=ground.adapter.kind,
        parameters=ground.adapter.parameters(),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        split=backbone.site.blocks[0],
        data_digest="",
        seed=ground.seed,
        code=__version__,
        metrics={"num_train": len(samples)},
        tensors=pack(result.tensors, ground.params.train.module_dtype),
    ).save(ground.module_folder(domain))
    clear_checkpoint(checkpoint)
    return {"train_seconds": sum(epoch["seconds"] for epoch in result.curve), "epochs": result.curve}
