"""What cases are made of: networks, drawn images with masks and points, banks of modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from samcl_core.adapters import Adapter, ModuleTensors, build_adapter
from samcl_core.backbones import NanoConfig, SamBackbone, is_present, load_backbone, load_nano, weights_digest
from samcl_core.backbones.frozen import draw_weights, freeze
from samcl_core.backbones.nano import NANO, build_nano, nano_backbone
from samcl_core.backbones.sam import build_sam
from samcl_core.bank import Bank, Module, pack, unpack
from samcl_core.config import PROFILES, BackboneParams, SelectorParams
from samcl_core.domains import Sample
from samcl_core.files import sha256_file
from samcl_core.progress import Progress, silent
from samcl_core.selectors import empty_state, fit_state
from samcl_core.speed.cases import Setup
from samcl_core.stages.machine import cache_dtype
from samcl_core.training import PrefixCache

__all__ = [
    "NANO_NETWORK",
    "VIT_B",
    "Network",
    "bank_of",
    "build_module_kind",
    "by_domain",
    "domain_names",
    "draw_mask",
    "draw_photo",
    "draw_samples",
    "embeddings_like",
    "open_cache",
    "random_module",
    "stored_dtype",
]


@dataclass(frozen=True)
class Network:
    """A SAM to measure with; it can be sent to another process.

    Attributes:
        label: last part of the names of its cases.
        name: ``sam_vit_b``, ``sam_nano``, or any name for drawn weights of ``config``.
        config: numbers of a small SAM; ``None`` for ViT-B.
    """

    label: str
    name: str
    config: NanoConfig | None = None

    @property
    def is_large(self) -> bool:
        """Whether one image takes seconds on a CPU."""
        return self.config is None

    def backbone(self, device: str) -> SamBackbone:
        """Our backbone: trained weights where they are on this machine, else drawn ones; the time is the same."""
        if self.name == NANO_NETWORK.name:
            return load_nano().to(device)
        if self.config is not None:
            return nano_backbone(self.name, self.config).to(device)
        if is_present(self.name):
            loaded = load_backbone(BackboneParams(name=self.name), device)
            assert isinstance(loaded, SamBackbone)
            return loaded
        sam = build_sam(self.name)
        draw_weights(sam, self.name)
        return SamBackbone(self.name, sam, sha256=weights_digest(sam), is_pretrained=False).to(device)

    def official(self, weights: Mapping[str, Tensor], device: str) -> nn.Module:
        """An official SAM of its own with these weights, frozen: nothing that we change in a backbone is in it."""
        sam = build_sam(self.name) if self.config is None else build_nano(self.config)
        sam.load_state_dict(weights)
        freeze(sam)
        return sam.to(device)


VIT_B = Network("vit-b", "sam_vit_b")
NANO_NETWORK = Network("nano", "sam_nano", NANO)


def open_cache(folder: Path, backbone: SamBackbone, profile: str, setup: Setup) -> PrefixCache:
    """A prefix cache as the pipeline opens it for a profile."""
    return PrefixCache(folder, backbone, dtype=stored_dtype(profile, setup))


def stored_dtype(profile: str, setup: Setup) -> Literal["float32", "float16"]:
    """How a profile keeps prefixes on the device of ``setup``."""
    return cache_dtype(PROFILES[profile]["cache"]["dtype"], torch.device(setup.device).type)


def build_module_kind(backbone: SamBackbone, profile: str) -> Adapter:
    """The AugModule with the settings of a profile."""
    return build_adapter("augmodule", backbone.site, **PROFILES[profile]["adapter"])


def random_module(adapter: Adapter, seed: int) -> ModuleTensors:
    """float32 tensors of a module that changes something."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in adapter.fresh(seed).items()}


def domain_names(count: int) -> tuple[str, ...]:
    """Names for ``count`` domains."""
    return tuple(f"Domain{number:04d}" for number in range(count))


def bank_of(
    backbone: SamBackbone,
    adapter: Adapter,
    classes: Mapping[str, Tensor],
    profile: str,
    progress: Progress = silent,
) -> tuple[Bank, dict[str, ModuleTensors]]:
    """A bank of random modules as banks store them, with the profile's selector; and the float32 weights in them.

    Args:
        backbone: what the bank is for.
        adapter: the kind of module.
        classes: domain to the (n, C) embeddings that the selector is fitted on.
        profile: whose selector.
        progress: told after each domain.
    """
    options = {**PROFILES[profile]["selector"], "num_classes": max(2, len(classes))}
    params = SelectorParams(**options)
    state, made = empty_state(params), []
    for number, (name, embeddings) in enumerate(classes.items()):
        state = state.added(name, embeddings, seed=0)
        made.append(_module(backbone, adapter, name, number))
        progress("making modules", number + 1, len(classes))
    selector, modules = fit_state(state, params, 0), tuple(made)
    weights = {module.domain: unpack(module.tensors) for module in modules}
    return Bank(backbone.name, backbone.sha256, modules, selector, None), weights


def _module(backbone: SamBackbone, adapter: Adapter, domain: str, seed: int) -> Module:
    return Module(
        domain=domain,
        kind=adapter.kind,
        parameters=adapter.parameters(),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        split=backbone.site.blocks[0],
        data_digest="0" * 64,
        seed=0,
        code="bench",
        metrics={},
        tensors=pack(random_module(adapter, seed)),
    )


def embeddings_like(rows: Tensor, count: int, seed: int) -> Tensor:
    """(count, C) embeddings of a domain around those of some of its images (n, C); each of these is among them."""
    generator = torch.Generator().manual_seed(seed)
    repeated = rows.cpu().repeat(-(-count // len(rows)), 1)[:count]
    noise = 0.02 * rows.cpu().std() * torch.randn(repeated.shape, generator=generator)
    noise[: len(rows)] = 0
    return repeated + noise


def draw_samples(
    folder: Path, count: int, *, side_px: int = 512, num_domains: int = 1, progress: Progress = silent
) -> list[Sample]:
    """JPEG images with PNG masks and three points each; sample i belongs to domain i % num_domains."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for at in range(count):
        rng = np.random.default_rng(at)
        image, mask = folder / f"{at:06d}.jpg", folder / f"{at:06d}.png"
        draw_photo(rng, side_px, at % num_domains).save(image, quality=90)
        pixels = draw_mask(rng, side_px)
        Image.fromarray(pixels).save(mask)
        samples.append(_sample(image, mask, pixels, rng))
        progress("drawing images", at + 1, count)
    return samples


def _sample(image: Path, mask: Path, pixels: np.ndarray, rng: np.random.Generator) -> Sample:
    rows, columns = np.nonzero(pixels)
    chosen = rng.integers(0, len(rows), 3)
    side = len(pixels)
    points = tuple((float(columns[k] * 1024 // side), float(rows[k] * 1024 // side)) for k in chosen)
    digests = sha256_file(image), sha256_file(mask)
    return Sample(image.name, image, mask, *digests, side, side, points, (1, 1, 1))


def draw_photo(rng: np.random.Generator, side_px: int, domain: int = 0) -> Image.Image:
    """Soft colours with noise, as photos have it, and a cast of colour that tells the domain."""
    soft = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((side_px, side_px), 3)
    noise = rng.integers(-12, 13, (side_px, side_px, 3), dtype=np.int16)
    cast = np.random.default_rng(domain).integers(-90, 91, 3) if domain else np.zeros(3, np.int64)
    return Image.fromarray((np.asarray(soft).astype(np.int16) + noise + cast).clip(0, 255).astype(np.uint8))


def draw_mask(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """(S, S) uint8, 0 and 255: a rectangle."""
    mask = np.zeros((side_px, side_px), dtype=np.uint8)
    left, top = rng.integers(0, side_px // 2, 2)
    mask[top : top + side_px // 3, left : left + side_px // 3] = 255
    return mask


def by_domain(samples: Sequence[Any], num_domains: int) -> list[list[Any]]:
    """What ``draw_samples`` drew, one list a domain."""
    return [list(samples[number::num_domains]) for number in range(num_domains)]
