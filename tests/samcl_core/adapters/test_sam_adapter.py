"""SAM-Adapter: hints are what the paper's layers compute, and need the image's side features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samcl_core.adapters import SamAdapter, build_adapter
from samcl_core.adapters.sam_adapter import SAM_ADAPTER_PLAN
from samcl_core.backbones import AdapterSite, Prefix, Prompts, tiny_backbone
from samcl_core.backbones.sam import SamBackbone
from samcl_core.errors import BankError, ConfigError

PROMPTS = Prompts(torch.tensor([[[300.0, 700.0]], [[10.0, 10.0]]]), torch.tensor([[1], [1]]))


@pytest.fixture(scope="module")
def backbone() -> SamBackbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def prefix(backbone: SamBackbone) -> Prefix:
    draw = np.random.default_rng(1)
    images = [draw.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    return backbone.prefix(torch.stack([backbone.preprocess(image) for image in images]), SAM_ADAPTER_PLAN)


def adapter_of(backbone: SamBackbone) -> SamAdapter:
    adapter = build_adapter("sam_adapter", backbone.site, reduction=4)
    assert isinstance(adapter, SamAdapter)
    return adapter


def test_sizes() -> None:
    sides = {"patches": (64, 64, 768), "high_frequency": (3, 1024, 1024)}
    site = AdapterSite(768, 256, 64, (7, 8, 9, 10, 11), (14, 0, 14, 14, 0), 12, sides)
    shapes = build_adapter("sam_adapter", site).shapes()
    assert shapes["frequency.weight"] == (24, 3, 16, 16)
    assert sum(math.prod(shape) for shape in shapes.values()) == 59_112


def test_the_formula(backbone: SamBackbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    draw = torch.Generator().manual_seed(3)
    t = {name: torch.randn(shape, generator=draw) for name, shape in adapter.shapes().items()}
    hooks = adapter.hooks(t, PROMPTS)
    hooks.begin(prefix)
    patch = backbone.image_size // backbone.site.grid
    details = F.conv2d(prefix.side["high_frequency"], t["frequency.weight"], t["frequency.bias"], stride=patch)
    embedded = prefix.side["patches"] @ t["embedding.weight"].T + t["embedding.bias"]
    features = embedded + details.permute(0, 2, 3, 1)
    x = torch.randn(prefix.tokens.shape, generator=draw)
    for position, block in enumerate(backbone.site.blocks):
        hidden = F.gelu(features @ t[f"tune_{position:03d}.weight"].T + t[f"tune_{position:03d}.bias"])
        expected = x + hidden @ t["up.weight"].T + t["up.bias"]
        torch.testing.assert_close(hooks.block_input(block, x), expected, rtol=1e-4, atol=1e-4)


def test_side_features_in_half_precision_will_do(backbone: SamBackbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    tensors = {name: value + 0.1 for name, value in adapter.fresh(0).items()}
    stored = Prefix(prefix.tokens, prefix.embedding, {name: value.half() for name, value in prefix.side.items()})
    with torch.no_grad():
        full, half = (
            backbone.suffix(given, PROMPTS, adapter.hooks(tensors, PROMPTS)).logits for given in (prefix, stored)
        )
    assert half.dtype == torch.float32
    assert float((full - half).norm()) < 0.01 * float(full.norm())


def test_a_prefix_without_side_features_is_refused(backbone: SamBackbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    bare = Prefix(prefix.tokens, prefix.embedding)
    with pytest.raises(BankError, match=r"side features \[\].*need 'blocks' with \['high_frequency', 'patches'\]"):
        backbone.suffix(bare, PROMPTS, adapter.hooks(adapter.null(), PROMPTS))


@pytest.mark.parametrize("reduction", [0, 1.5, "wide"])
def test_reduction_is_checked(backbone: SamBackbone, reduction: Any) -> None:
    with pytest.raises(ConfigError, match=f"reduction is {reduction!r}"):
        build_adapter("sam_adapter", backbone.site, reduction=reduction)


def test_the_hidden_width_never_vanishes(backbone: SamBackbone) -> None:
    adapter = build_adapter("sam_adapter", backbone.site, reduction=1000)
    assert adapter.shapes()["up.weight"] == (backbone.site.dim, 1)
