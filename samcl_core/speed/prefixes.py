"""The prefix cache on disk: what writing and reading cost."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import torch

from samcl_core.backbones import Prefix
from samcl_core.domains import load_image
from samcl_core.speed.cases import Arms, Case, Setup
from samcl_core.speed.ground import Network, draw_samples, open_cache, stored_dtype
from samcl_core.training.prefix_files import PrefixFiles

__all__ = ["prefix_read_case", "prefix_write_case"]


def prefix_read_case(network: Network, groups: tuple[str, ...]) -> Case:
    """Read stored prefixes into a new cache, against computing them. Both return the prefixes."""
    title = f"read prefixes from the cache on disk, {network.name} (size: images)"
    baseline, arms = "read and decode the images, and compute the prefixes", partial(_reading, network)
    repeats = 3 if network.is_large else 5
    return Case(f"prefix-read-{network.label}", title, baseline, arms, groups=groups, repeats=repeats)


def _reading(network: Network, setup: Setup) -> Arms:
    count = setup.size or (4 if network.is_large and not setup.is_cuda else 32)
    samples = draw_samples(setup.folder / "images", count, progress=setup.progress)
    backbone = network.backbone(setup.device)
    open_cache(setup.folder / "cache", backbone, "default", setup).warm(samples, setup.progress)

    def ours() -> Prefix:
        return open_cache(setup.folder / "cache", backbone, "default", setup).get(samples)

    def baseline() -> Prefix:
        pixels = (backbone.preprocess(load_image(sample.image))[None] for sample in samples)
        return Prefix.cat([backbone.prefix(one.to(setup.device)).to("cpu") for one in pixels])

    return Arms(baseline, ours, {"images": count, "is_pretrained": backbone.is_pretrained})


def prefix_write_case(network: Network, groups: tuple[str, ...]) -> Case:
    """Write prefixes into the cache on disk, as it keeps them. Both return the bytes that were written."""
    title = f"write prefixes into the cache on disk, {network.name} (size: images)"
    baseline, arms = "torch.save of each prefix in float32, neither checked nor bounded", partial(_writing, network)
    return Case(f"prefix-write-{network.label}", title, baseline, arms, groups=groups)


def _writing(network: Network, setup: Setup) -> Arms:
    count = setup.size or 16
    site = network.backbone("cpu").site
    tokens = torch.randn(count, site.grid, site.grid, site.dim, generator=torch.Generator().manual_seed(0))
    rows = [{"tokens": part, "embedding": part.mean(dim=(0, 1))} for part in tokens]
    stored = torch.float16 if stored_dtype("default", setup) == "float16" else torch.float32
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]

    def ours() -> int:
        shutil.rmtree(setup.folder / "ours", ignore_errors=True)
        files = PrefixFiles(setup.folder / "ours", "bench", 10**12)
        for name, row in zip(names, rows, strict=True):
            files.write(name, {**row, "tokens": row["tokens"].to(stored)})
        return _num_bytes(setup.folder / "ours")

    def baseline() -> int:
        folder = setup.folder / "baseline"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, row in zip(names, rows, strict=True):
            torch.save({key: value.clone() for key, value in row.items()}, folder / f"{name}.pt")
        return _num_bytes(folder)

    return Arms(baseline, ours, {"images": count})


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
