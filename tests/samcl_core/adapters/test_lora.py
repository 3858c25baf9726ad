"""LoRA: the same as merged weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import AdapterSite, Backbone, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.errors import ConfigError

PROMPTS = Prompts(torch.tensor([[[300.0, 700.0]], [[10.0, 10.0]]]), torch.tensor([[1], [1]]))


def test_sizes() -> None:
    site = AdapterSite(768, 256, 64, (7, 8, 9, 10, 11), (14, 0, 14, 14, 0), 12)
    adapter = build_adapter("lora", site)
    assert list(adapter.shapes())[:4] == ["A_q_000", "B_q_000", "A_v_000", "B_v_000"]
    assert sum(math.prod(shape) for shape in adapter.shapes().values()) == 61_440


@pytest.mark.parametrize("make", [tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_equal_to_merged_weights(make, alpha: float | None) -> None:
    backbone: Backbone = make()
    adapter = build_adapter("lora", backbone.site, rank=3, alpha=alpha)
    draw = torch.Generator().manual_seed(5)
    tensors = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in adapter.shapes().items()}
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    pixels = torch.stack([backbone.preprocess(image), backbone.preprocess(255 - image)])
    prefix = backbone.prefix(pixels)
    with torch.no_grad():
        plain = backbone.suffix(prefix, PROMPTS, training=True)
        adapted = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS), training=True)
        module = backbone.module
        encoder = module.image_encoder
        blocks = encoder.trunk.blocks if hasattr(encoder, "trunk") else encoder.blocks
        dim, scale = backbone.site.dim, 1.0 if alpha is None else alpha / 3
        for position, block in enumerate(backbone.site.blocks):
            weight = blocks[block].attn.qkv.weight
            for which, start in (("q", 0), ("v", 2 * dim)):
                a, b = tensors[f"A_{which}_{position:03d}"], tensors[f"B_{which}_{position:03d}"]
                weight[start : start + dim] += scale * b @ a
        merged = backbone.suffix(prefix, PROMPTS, training=True)
    torch.testing.assert_close(adapted.logits, merged.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.iou, merged.iou, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted.logits, plain.logits, atol=1e-3)


@pytest.mark.parametrize("alpha", [0, -1.0, float("inf"), float("nan"), "wide", True])
def test_alpha_is_checked(alpha: object) -> None:
    with pytest.raises(ConfigError, match=f"alpha is {alpha!r}, expected a number above 0"):
        build_adapter("lora", AdapterSite(8, None, 4, (0,), (0,)), alpha=alpha)
