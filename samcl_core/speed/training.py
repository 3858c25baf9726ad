"""One training epoch of a module, and the memory of one training step."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from samcl_core.backbones import SamBackbone
from samcl_core.config import PROFILES, TrainParams
from samcl_core.domains import Sample
from samcl_core.speed.cases import Arm, Arms, Case, Setup, Spent
from samcl_core.speed.ground import Network, build_module_kind, draw_samples, open_cache, random_module
from samcl_core.speed.published import PublishedData, PublishedModule, PublishedSam, train_epoch
from samcl_core.training import PrefixCache, train_module

__all__ = ["baseline_epoch", "memory_case", "our_epoch", "train_case"]

_LR = 0.005
_CUDA_WORKERS = 4
_BASELINE = (
    "as published: read and decode each image and mask, whole official network in float32, prompts and masks one image "
    "at a time, heat-maps by OpenCV on the CPU, loss at full resolution"
)


def baseline_epoch(
    network: Network, backbone: SamBackbone, samples: Sequence[Sample], batch_size: int, device: str, profile: str
) -> Arm:
    """An epoch as the published code trains, on an official network of its own; it returns the mean loss."""
    adapter = build_module_kind(backbone, profile)
    module = PublishedModule(adapter.shapes(), adapter.site.grid)
    module.load_state_dict(random_module(adapter, 0))
    sam = network.official(backbone.module.state_dict(), device)
    published = PublishedSam(sam, adapter.site.blocks, module.to(device))
    optimizer = torch.optim.Adam(module.parameters(), lr=_LR)
    data = PublishedData(samples, backbone.image_size)
    workers = _CUDA_WORKERS if torch.device(device).type == "cuda" else 0

    def baseline() -> Spent:
        start = time.perf_counter()
        loss = train_epoch(published, optimizer, data, batch_size, device=device, num_workers=workers)
        return Spent(time.perf_counter() - start, loss)

    return baseline


def our_epoch(
    backbone: SamBackbone, cache: PrefixCache, samples: Sequence[Sample], batch_size: int, epochs: int, profile: str
) -> Arm:
    """The last of ``epochs`` epochs of ``train_module``; it returns the mean loss of that one.

    What is done once a training (digests of the frozen weights before and after) is not in its seconds.
    """
    adapter = build_module_kind(backbone, profile)
    given = {**PROFILES[profile]["train"], "schedule": "constant"}
    options = TrainParams(epochs=epochs, batch_size=batch_size, lr=_LR, **given)

    def ours() -> Spent:
        initial = random_module(adapter, 0)
        last = train_module(backbone, adapter, cache, samples, options, seed=0, initial=initial).curve[-1]
        return Spent(last["seconds"], last["total"])

    return ours


def train_case(
    network: Network, targets: Mapping[str, float], groups: tuple[str, ...], profile: str = "default"
) -> Case:
    """One epoch of training with a warm prefix cache, against the published way. Both return the mean loss.

    ``profile`` is that of our way; ``reference`` computes the baseline's numbers.
    """
    title = f"one training epoch, {network.name}, prefix cache warm (size: images)"
    repeats = 3 if network.is_large else 5
    arms = partial(_epochs, network, profile)
    return Case(f"train-{network.label}", title, _BASELINE, arms, targets, groups, repeats)


def _epochs(network: Network, profile: str, setup: Setup) -> Arms:
    """Ours is the second of two epochs where one is short, so that all masks are decoded, as in all but the first."""
    is_slow = network.is_large and not setup.is_cuda
    batch_size = 1 if is_slow else 8
    samples = draw_samples(setup.folder / "images", setup.size or _num_images(network, setup))
    backbone = network.backbone(setup.device)
    cache = open_cache(setup.folder / "cache", backbone, profile, setup)
    cache.warm(samples, setup.progress)
    baseline = baseline_epoch(network, backbone, samples, batch_size, setup.device, profile)
    ours = our_epoch(backbone, cache, samples, batch_size, 1 if is_slow else 2, profile)
    about = {"images": len(samples), "batch_size": batch_size, "is_pretrained": backbone.is_pretrained}
    return Arms(baseline, ours, about)


def _num_images(network: Network, setup: Setup) -> int:
    if not network.is_large:
        return 48
    return 64 if setup.is_cuda else 2


@dataclass(frozen=True)
class _Step:
    """One training step in a process of its own."""

    network: Network
    folder: Path
    samples: tuple[Sample, ...]
    device: str
    profile: str
    num_threads: int
    is_ours: bool

    def peak(self) -> Spent:
        """Most bytes in use at once, and the loss; on the CPU without those of the interpreter and its libraries."""
        torch.set_num_threads(self.num_threads)
        before = _peak_rss_bytes()
        backbone = self.network.backbone(self.device)
        count = len(self.samples)
        if self.is_ours:
            setup = Setup(self.folder, device=self.device)
            cache = open_cache(self.folder / "cache", backbone, self.profile, setup)
            arm = our_epoch(backbone, cache, self.samples, count, 1, self.profile)
        else:
            arm = baseline_epoch(self.network, backbone, self.samples, count, self.device, self.profile)
            backbone.to("meta")
        result = arm().result
        if torch.device(self.device).type == "cuda":
            return Spent(torch.cuda.max_memory_allocated(self.device), result)
        return Spent(_peak_rss_bytes() - before, result)


def _peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage() hands a new process the peak of its parent
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_case(network: Network, groups: tuple[str, ...], profile: str = "default") -> Case:
    """Peak memory of one training step, weights included, against the published way. Both return the loss."""
    name, arms = f"memory-{network.label}", partial(_steps, network, profile)
    title = f"peak memory of one training step, {network.name}, prefix cache warm (size: batch)"
    targets = {"cpu": 3.0, "cuda": 3.0}
    return Case(name, title, _BASELINE, arms, targets, groups, repeats=1, warm_ups=0, unit="bytes")


def _steps(network: Network, profile: str, setup: Setup) -> Arms:
    batch_size = setup.size or (8 if setup.is_cuda else 1)
    samples = tuple(draw_samples(setup.folder / "images", batch_size))
    backbone = network.backbone(setup.device)
    open_cache(setup.folder / "cache", backbone, profile, setup).warm(samples, setup.progress)
    given = (network, setup.folder, samples, setup.device, profile, torch.get_num_threads())
    baseline, ours = _Step(*given, is_ours=False), _Step(*given, is_ours=True)
    about = {"batch_size": batch_size, "is_pretrained": backbone.is_pretrained}
    return Arms(lambda: _alone(baseline), lambda: _alone(ours), about)


def _alone(step: _Step) -> Spent:
    """In a new process, whose peak nothing else has raised."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step.peak).result()
