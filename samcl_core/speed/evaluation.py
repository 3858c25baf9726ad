"""Scoring a test set of several domains with a bank of their modules."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from samcl_core.adapters import Adapter
from samcl_core.backbones import SamBackbone
from samcl_core.bank import Bank
from samcl_core.config import PROFILES, EvaluateParams
from samcl_core.domains import Sample
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.speed.cases import Arms, Case, Setup
from samcl_core.speed.ground import (
    Network,
    bank_of,
    build_module_kind,
    by_domain,
    domain_names,
    draw_samples,
    embeddings_like,
    open_cache,
)
from samcl_core.speed.published import answer_image, save_published

__all__ = ["PER_IMAGE", "Mixed", "evaluate_case", "make_mixed"]

_ROWS_A_DOMAIN = 24
PER_IMAGE = "as published, image by image: copy the network, read the module's file, whole network in float32"
_BASELINE = f"{PER_IMAGE}, the same selector on the embedding of that pass, IoU, F1 and MAE by numpy"


@dataclass(frozen=True)
class Mixed:
    """Images of several domains, a bank of their modules, and the official network with its module files.

    Attributes:
        backbone: ours.
        adapter: the kind of module.
        bank: one module a domain.
        official: the official network with the same weights.
        modules: folder of module files as the published code reads them.
        samples: as many of each domain, in turns.
        warm: folder of a cache that holds the prefixes of ``samples``.
    """

    backbone: SamBackbone
    adapter: Adapter
    bank: Bank
    official: nn.Module
    modules: Path
    samples: Sequence[Sample]
    warm: Path

    def choose(self, embedding: Tensor) -> str:
        """The bank's selector, as a name."""
        index = int(self.bank.selector.choose(embedding).index[0])
        return "plain" if index < 0 else self.bank.names[index]


def make_mixed(network: Network, setup: Setup, num_images: int, num_domains: int, profile: str) -> Mixed:
    """Draw images, compute their prefixes, fit the selector on their embeddings, and make a random module a domain."""
    images = setup.folder / "images"
    samples = draw_samples(images, num_images, num_domains=num_domains, progress=setup.progress)
    backbone = network.backbone(setup.device)
    adapter = build_module_kind(backbone, profile)
    cache = open_cache(setup.folder / "warm", backbone, profile, setup)
    embeddings = cache.embeddings(samples, setup.progress)
    classes = {
        name: embeddings_like(embeddings[rows], max(_ROWS_A_DOMAIN, len(rows)), number)
        for number, (name, rows) in enumerate(
            zip(domain_names(num_domains), by_domain(range(num_images), num_domains), strict=True)
        )
    }
    bank, tensors = bank_of(backbone, adapter, classes, profile)
    save_published(setup.folder / "published", tensors)
    official = network.official(backbone.module.state_dict(), setup.device)
    return Mixed(backbone, adapter, bank, official, setup.folder / "published", samples, setup.folder / "warm")


def evaluate_case(
    network: Network,
    targets: Mapping[str, float],
    groups: tuple[str, ...],
    *,
    is_warm: bool = False,
    profile: str = "default",
) -> Case:
    """Score a mixed test set; there are as many domains as images, up to eight.

    Both arms return the module and the IoU of each image. ``is_warm`` reads the prefixes from the disk, as every
    evaluation after the first one does.
    """
    name = f"evaluate-{network.label}" + ("-warm" if is_warm else "")
    state = "prefix cache warm, on disk" if is_warm else "prefix cache empty"
    title = f"evaluate a mixed test set, {network.name}, {state} (size: images)"
    arms = partial(_arms, network, is_warm, profile)
    return Case(name, title, _BASELINE, arms, targets, groups, 3 if network.is_large else 5)


def _arms(network: Network, is_warm: bool, profile: str, setup: Setup) -> Arms:
    num_images = setup.size or (4 if network.is_large and not setup.is_cuda else 32)
    mixed = make_mixed(network, setup, num_images, min(num_images, 8), profile)
    params = EvaluateParams(**PROFILES[profile]["evaluate"])
    segmenter = Segmenter(mixed.backbone, mixed.bank)

    def ours() -> list[tuple[str, float]]:
        folder = mixed.warm if is_warm else setup.folder / "cold"
        if not is_warm:
            shutil.rmtree(folder, ignore_errors=True)
        cache = open_cache(folder, mixed.backbone, profile, setup)
        rows = score_samples(segmenter, cache, mixed.samples, params)
        return list(zip(rows["module"], rows["iou"], strict=True))

    def baseline() -> list[tuple[str, float]]:
        return [_score(mixed, sample) for sample in mixed.samples]

    about = {"images": num_images, "domains": len(mixed.bank.names), "is_pretrained": mixed.backbone.is_pretrained}
    return Arms(baseline, ours, about)


def _score(mixed: Mixed, sample: Sample) -> tuple[str, float]:
    size = mixed.backbone.image_size
    with Image.open(sample.image) as image:
        found, name = answer_image(
            mixed.official, mixed.adapter, mixed.modules, mixed.choose, image, sample.points, (size, size)
        )
    with Image.open(sample.mask) as mask:
        truth = np.asarray(mask.convert("L").resize((size, size), Image.Resampling.NEAREST)) == 255
    return name, _scores(found, truth)["iou"]


def _scores(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    both, either = float((found & truth).sum()), float((found | truth).sum())
    total = float(found.sum() + truth.sum())
    mae = float(np.abs(found.astype(np.float32) - truth.astype(np.float32)).mean())
    return {"iou": both / either if either else 1.0, "f1": 2 * both / total if total else 1.0, "mae": mae}
