"""Answering images: one, several of mixed domains, and choosing among very many modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samcl_core.adapters import Adapter
from samcl_core.adapters.base import gathered
from samcl_core.backbones import AdapterSite, Prefix, Prompts
from samcl_core.bank import ModuleStack
from samcl_core.inference import Prompt, Segmenter
from samcl_core.speed.cases import Arm, Arms, Case, Setup
from samcl_core.speed.evaluation import PER_IMAGE, Mixed, make_mixed
from samcl_core.speed.ground import Network, bank_of, build_module_kind, domain_names
from samcl_core.speed.published import answer_image

__all__ = ["many_modules_case", "mixed_batch_case", "serve_case"]

_ROWS_A_DOMAIN = 4
_BATCH = 8
_PASSES = 20


def serve_case(network: Network, what: str, num_images: int, groups: tuple[str, ...], profile: str = "default") -> Case:
    """Answer images that were never seen, all in one batch. Both arms return masks and the names of the modules.

    ``what`` is ``latency`` or ``throughput``; ``num_images`` the default size.
    """
    title = f"serve {what}: images of several domains at once, {network.name} (size: images)"
    baseline = f"{PER_IMAGE}, the same selector on the embedding of that pass"
    arms, repeats = partial(_serving, network, num_images, profile), 3 if network.is_large else 10
    return Case(f"serve-{what}-{network.label}", title, baseline, arms, groups=groups, repeats=repeats)


def _serving(network: Network, num_images: int, profile: str, setup: Setup) -> Arms:
    num_images = setup.size or num_images
    mixed = make_mixed(network, setup, num_images, num_images, profile)
    segmenter = Segmenter(mixed.backbone, mixed.bank)
    images = [Image.open(sample.image).convert("RGB") for sample in mixed.samples]
    arrays = [np.asarray(image) for image in images]
    prompts = [Prompt(sample.points, sample.labels) for sample in mixed.samples]
    upsampling: Literal["nearest", "bilinear"] = "nearest" if profile == "reference" else "bilinear"

    def ours() -> list[tuple[np.ndarray, str]]:
        answers = segmenter.predict(arrays, prompts, batch_size=num_images, upsampling=upsampling)
        return [(answer.mask, answer.module) for answer in answers]

    def baseline() -> list[tuple[np.ndarray, str]]:
        return [_answer(mixed, image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    return Arms(baseline, ours, {"images": num_images, "is_pretrained": mixed.backbone.is_pretrained})


def _answer(mixed: Mixed, image: Image.Image, prompt: Prompt) -> tuple[np.ndarray, str]:
    size = (image.height, image.width)
    return answer_image(mixed.official, mixed.adapter, mixed.modules, mixed.choose, image, prompt.points, size)


def mixed_batch_case(network: Network, groups: tuple[str, ...]) -> Case:
    """A batch whose images all need another module, against one whose images need the same. Both return the logits.

    The logits of the first image come from the same module.
    """
    title = f"segment a batch of 8 domains in one pass, {network.name} (size: images and domains)"
    baseline = "as many images of one domain, with its module as the only one; prefixes given in both arms"
    arms, repeats = partial(_mixing, network), 3 if network.is_large else 10
    targets = {"cpu": 0.9, "cuda": 0.95}
    return Case(f"mixed-batch-{network.label}", title, baseline, arms, targets, groups, repeats)


def _mixing(network: Network, setup: Setup) -> Arms:
    size = setup.size or 8
    backbone = network.backbone(setup.device)
    adapter = build_module_kind(backbone, "default")
    drawn = _random_prefix(backbone.site, size)
    prefix, prompts = drawn.to(setup.device), _random_prompts(size).to(setup.device)
    names = domain_names(size)
    classes = {name: drawn.embedding[row : row + 1].repeat(2, 1) for row, name in enumerate(names)}
    bank, tensors = bank_of(backbone, adapter, classes, "default")
    segmenter = Segmenter(backbone, bank)
    single = {name: tensor.to(setup.device) for name, tensor in tensors[names[0]].items()}

    def ours() -> Tensor:
        return segmenter.segment(prefix, prompts, names)[0].logits

    @torch.no_grad()
    def baseline() -> Tensor:
        return backbone.suffix(prefix, prompts, adapter.hooks(single, prompts)).logits

    return Arms(baseline, ours, {"images": size, "is_pretrained": backbone.is_pretrained})


def _random_prefix(site: AdapterSite, count: int) -> Prefix:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, site.grid, site.grid, site.dim, generator=generator)
    tokens += torch.randn(count, 1, 1, site.dim, generator=generator)
    return Prefix(tokens, tokens.mean(dim=(1, 2)))


def _random_prompts(count: int) -> Prompts:
    points = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(1)) * 1000
    return Prompts(points, torch.ones(count, 3, dtype=torch.int64))


def many_modules_case(network: Network) -> Case:
    """Choose and gather the modules of a batch out of a thousand, against out of five.

    Both return the gathered tensors of the same 8 images, which belong to the first five domains.
    """
    title = f"choose and gather the modules of {_BATCH} images out of 1,000, {network.name}'s shapes (size: modules)"
    targets = {"cpu": 1 / 1.2, "cuda": 1 / 1.1}
    baseline, arms = "the same out of 5 modules", partial(_many, network)
    return Case("modules-1000", title, baseline, arms, targets, ("cpu", "gpu"), repeats=10)


def _many(network: Network, setup: Setup) -> Arms:
    backbone = network.backbone(setup.device)
    adapter = build_module_kind(backbone, "default")
    count = setup.size or 1000
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count, 1, backbone.site.dim, generator=generator)
    rows = centres + 0.3 * torch.randn(count, _ROWS_A_DOMAIN, backbone.site.dim, generator=generator)
    images = torch.arange(_BATCH)
    embedding = rows[images % 5, images % _ROWS_A_DOMAIN].to(setup.device)
    arms: list[Arm] = []
    for num_modules in (5, count):
        classes = dict(zip(domain_names(num_modules), rows, strict=False))
        bank = bank_of(backbone, adapter, classes, "default", setup.progress)[0]
        arms.append(_choosing(Segmenter(backbone, bank), adapter, embedding))
    return Arms(arms[0], arms[1], {"modules": count, "batch_size": _BATCH, "passes": _PASSES})


def _choosing(segmenter: Segmenter, adapter: Adapter, embedding: Tensor) -> Arm:
    assert segmenter.bank is not None
    stack = ModuleStack(segmenter.bank.modules, adapter, embedding.device)
    prompts = _random_prompts(_BATCH).to(embedding.device)

    def choose() -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = {}
        for _ in range(_PASSES):
            # As ``Segmenter.segment`` does it: each module of the batch once, then each image's own.
            rows = segmenter.route(embedding).rows.tolist()
            distinct = list(dict.fromkeys(rows))
            index = torch.tensor([distinct.index(row) for row in rows], device=embedding.device)
            found = gathered(adapter, stack.tensors(distinct), prompts, index)
        return found

    return choose
