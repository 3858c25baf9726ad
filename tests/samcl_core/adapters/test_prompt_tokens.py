"""Prompt tokens: plain attention over more tokens, the same in every window; tokens of zeros are none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from samcl_core.adapters import PromptTokenHooks, build_adapter
from samcl_core.backbones import AdapterSite, Backbone, Prompts, load_nano, tiny_backbone, tiny_sam2_backbone
from samcl_core.backbones.blocks import attend, relative_bias
from samcl_core.errors import BankError

PROMPTS = Prompts(torch.tensor([[[300.0, 700.0]], [[10.0, 10.0]]]), torch.tensor([[1], [1]]))


@pytest.fixture(scope="module", params=[tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.param()


def attention_of(backbone: Backbone, block: int) -> Any:
    encoder: Any = backbone.module.image_encoder
    return (encoder.trunk if hasattr(encoder, "trunk") else encoder).blocks[block].attn


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sizes() -> None:
    site = AdapterSite(768, 256, 64, (7, 8, 9, 10, 11), (14, 0, 14, 14, 0), 12)
    shapes = build_adapter("prompt_tokens", site).shapes()
    assert list(shapes)[:2] == ["keys_000", "values_000"]
    assert sum(math.prod(shape) for shape in shapes.values()) == 61_440


@pytest.mark.parametrize("is_shared", [False, True])
def test_attention_over_more_tokens(backbone: Backbone, is_shared: bool) -> None:
    """Written out: one softmax over the tokens of the sample's prompt and the window's own."""
    dim, block, windows, side = backbone.site.dim, backbone.site.blocks[0], 3, 2
    attn = attention_of(backbone, block)
    heads = attn.num_heads
    x = random(2 * windows, side, side, dim, seed=0)
    keys, values = (random(1 if is_shared else 2, 4, dim, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        found = attend(attn, x, block, PromptTokenHooks({block: keys}, {block: values}))
        for row in range(len(x)):
            q, k, v = attn.qkv(x[row]).reshape(side * side, 3, heads, -1).permute(1, 2, 0, 3)
            owner = 0 if is_shared else row // windows
            more_k, more_v = (part[owner].reshape(4, heads, -1).transpose(0, 1) for part in (keys, values))
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            if (bias := relative_bias(attn, q[None], side, side)) is not None:
                scores = scores + bias[0]
            weights = torch.cat([q @ more_k.mT / math.sqrt(q.shape[-1]), scores], -1).softmax(-1)
            seen = weights @ torch.cat([more_v, v], 1)
            expected = attn.proj(seen.transpose(0, 1).reshape(side, side, dim))
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


def test_tokens_of_zeros_are_none(backbone: Backbone) -> None:
    dim, block = backbone.site.dim, backbone.site.blocks[0]
    attn = attention_of(backbone, block)
    x, token = random(2, 3, 3, dim, seed=0), random(2, 1, dim, seed=1)
    padded = torch.cat([token, torch.zeros(2, 5, dim)], 1)

    def run(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = attend(attn, x, block, PromptTokenHooks({block: keys}, {block: values}))
            return found

    torch.testing.assert_close(run(padded, padded), run(token, token), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run(0 * padded, 0 * padded), attn(x), rtol=1e-5, atol=1e-5)
    # A value of zeros beside a real key is a token: it takes attention away.
    assert not torch.allclose(run(token, 0 * token), attn(x), atol=1e-3)
    assert not torch.allclose(run(0 * token, token), attn(x), atol=1e-3)


def test_only_the_named_blocks_see_tokens(backbone: Backbone) -> None:
    block, other = backbone.site.blocks[:2]
    hooks = PromptTokenHooks(*({block: random(1, 2, backbone.site.dim, seed=seed)} for seed in (0, 1)))
    assert hooks.context(block) is not None
    assert hooks.context(other) is None


def test_blocks_and_shapes_must_agree() -> None:
    tokens = torch.ones(2, 3, 8)
    for keys, values in (({1: tokens}, {2: tokens}), ({1: tokens}, {1: tokens[:, :2]}), ({1: tokens[0]},) * 2):
        with pytest.raises(BankError, match=r"expected the same, \(B, P, C\) by block"):
            PromptTokenHooks(keys, values)


def test_a_new_module_changes_little() -> None:
    backbone = load_nano()
    adapter = build_adapter("prompt_tokens", backbone.site)
    pixels = torch.stack(
        [backbone.preprocess((random(96, 96, 3, seed=s).clamp(0, 2) * 120).byte().numpy()) for s in (0, 1)]
    )
    prefix = backbone.prefix(pixels)
    with torch.no_grad():
        plain = backbone.suffix(prefix, PROMPTS).logits
        new = backbone.suffix(prefix, PROMPTS, adapter.hooks(adapter.fresh(0), PROMPTS)).logits
    assert 0 < float((new - plain).norm()) < 0.02 * float(plain.norm())
