"""Tokens through the frozen encoder: blind patches stay what they are, seeing patches are one long sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.backbones import PrefixPlan, TokenBackbone, tiny_backbone, tiny_sam2_backbone
from samcl_core.backbones.blocks import join_windows, relative_bias, split_windows
from samcl_core.backbones.tokens import joint_step, normed_patches, one_pass, token_step, two_pass

ENCODER = PrefixPlan("encoder")


@pytest.fixture(scope="module", params=["sam", "sam2"])
def backbone(request: pytest.FixtureRequest) -> TokenBackbone:
    return tiny_backbone() if request.param == "sam" else tiny_sam2_backbone()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(num: int = 2) -> Tensor:
    return drawn(num, 3, 64, 64, seed=9)


def sequence_attention(attn: Any, queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of (B, N, C) normed tokens to (B, M, C) normed tokens, written out; ``bias`` (B, heads, N, M)."""
    batch, num, dim = queries.shape
    heads, width = attn.num_heads, dim // attn.num_heads
    q = attn.qkv(queries)[..., :dim].reshape(batch, num, heads, width).transpose(1, 2)
    k, v = attn.qkv(keys)[..., dim:].reshape(batch, -1, 2, heads, width).permute(2, 0, 3, 1, 4)
    scores = (q * width**-0.5) @ k.transpose(-1, -2)
    scores = scores if bias is None else scores + bias
    return attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, num, dim))


def naive_joint(block: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One long sequence a window for the patches, one over the whole image for the tokens."""
    attn, (height, width), num = block.attn, x.shape[1:3], tokens.shape[1]
    normed, told = block.norm1(x), block.norm1(tokens)
    whole = torch.cat([told, normed.flatten(1, 2)], 1)
    ahead = tokens + sequence_attention(attn, told, whole, None)
    ahead = ahead + block.mlp(block.norm2(ahead))
    windows = split_windows(normed, block.window_size) if block.window_size else normed
    own, (h, w) = windows.flatten(1, 2), windows.shape[1:3]
    q = attn.qkv(own)[..., : own.shape[-1]].unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
    bias = relative_bias(attn, q, h, w)
    if bias is not None:
        bias = F.pad(bias, (num, 0))
    everyone = torch.cat([told.repeat_interleave(len(windows) // len(tokens), 0), own], 1)
    out = sequence_attention(attn, own, everyone, bias).unflatten(1, (h, w))
    x = x + (join_windows(out, height, width) if block.window_size else out)
    return x + block.mlp(block.norm2(x)), ahead


class TestOneStep:
    def test_windows_of_the_test_backbones_are_padded(self) -> None:
        sam = tiny_backbone()
        assert [sam.block(index).window_size for index in sam.token_blocks] == [3, 0, 3, 0]
        assert sam.site.grid % 3 > 0

    def test_both_seeing_equals_one_long_sequence(self, backbone: TokenBackbone) -> None:
        dim = backbone.site.dim
        for index in backbone.token_blocks:
            x, tokens = drawn(2, backbone.site.grid, backbone.site.grid, dim), drawn(2, 5, dim, seed=1)
            found, expected = (
                joint_step(backbone.block(index), x, tokens),
                naive_joint(backbone.block(index), x, tokens),
            )
            for left, right in zip(found, expected, strict=True):
                torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)

    def test_tokens_attend_to_all_patches_and_each_other(self, backbone: TokenBackbone) -> None:
        block = backbone.block(backbone.token_blocks[-1])
        x, tokens = drawn(1, backbone.site.grid**2, backbone.site.dim), drawn(1, 3, backbone.site.dim, seed=1)
        plain = token_step(block, tokens, x)
        for place in (0, -1):
            other = x.clone()
            other[:, place] += 1
            assert not torch.equal(token_step(block, tokens, other)[:, 0], plain[:, 0])
        other = tokens.clone()
        other[:, 2] *= -1
        assert not torch.equal(token_step(block, other, x)[:, 0], plain[:, 0])

    def test_gradients_are_right(self) -> None:
        sam = tiny_backbone().module.double()
        block = sam.image_encoder.blocks[0]
        tokens, patches = drawn(1, 2, 16).double().requires_grad_(), drawn(1, 9, 16, seed=1).double()
        assert torch.autograd.gradcheck(lambda t: token_step(block, t, patches), (tokens,))


class TestOnePass:
    @pytest.mark.parametrize("plan", [PrefixPlan(), ENCODER])
    def test_the_prefix_is_the_plain_one_to_the_bit(self, backbone: TokenBackbone, plan: PrefixPlan) -> None:
        plain = backbone.prefix(pixels(), plan)
        for depth in (backbone.site.blocks[0], backbone.token_blocks[-1] + 1):
            prefix, query = one_pass(backbone, pixels(), drawn(4, backbone.site.dim), depth, plan)
            assert torch.equal(prefix.tokens, plain.tokens) and torch.equal(prefix.embedding, plain.embedding)
            assert prefix.split == plain.split and set(prefix.side) == set(plain.side)
            assert all(torch.equal(prefix.side[name], plain.side[name]) for name in plain.side)
            assert query.shape == (2, backbone.site.dim) and bool(torch.isfinite(query).all())

    def test_side_features_do_not_disturb_it(self) -> None:
        sam, plan = tiny_backbone(), PrefixPlan("blocks", ("first_global", "patches"))
        prefix, _ = one_pass(sam, pixels(), drawn(4, 16), 4, plan)
        plain = sam.prefix(pixels(), plan)
        assert torch.equal(prefix.tokens, plain.tokens)
        assert torch.equal(prefix.side["first_global"], plain.side["first_global"])

    def test_the_query_does_not_depend_on_what_the_prefix_is_for(self, backbone: TokenBackbone) -> None:
        tokens = drawn(4, backbone.site.dim)
        for depth in (backbone.site.blocks[0], backbone.token_blocks[-1] + 1):
            left, right = (one_pass(backbone, pixels(), tokens, depth, plan)[1] for plan in (PrefixPlan(), ENCODER))
            assert torch.equal(left, right)

    def test_equals_steps_over_the_plain_blocks(self, backbone: TokenBackbone) -> None:
        x, ahead = backbone.stem(pixels()), drawn(4, backbone.site.dim).expand(2, -1, -1)
        queries = {}
        for index in backbone.token_blocks:
            block = backbone.block(index)
            ahead, x = token_step(block, ahead, block.norm1(x).flatten(1, 2)), block(x)
            queries[index + 1] = ahead[:, 0]
        for depth, expected in queries.items():
            torch.testing.assert_close(one_pass(backbone, pixels(), drawn(4, backbone.site.dim), depth)[1], expected)

    def test_patches_are_kept_for_each_block(self, backbone: TokenBackbone) -> None:
        depth = backbone.token_blocks[-1] + 1
        patches = normed_patches(backbone, pixels(), depth)
        shapes = [(2, backbone.site.grid**2, backbone.site.dim)] * len(backbone.token_blocks)
        assert [tuple(part.shape) for part in patches] == shapes
        ahead = drawn(4, backbone.site.dim).expand(2, -1, -1)
        for index, part in zip(backbone.token_blocks, patches, strict=True):
            ahead = token_step(backbone.block(index), ahead, part)
        assert torch.equal(ahead[:, 0], one_pass(backbone, pixels(), drawn(4, backbone.site.dim), depth)[1])


class TestTwoPasses:
    def test_equals_one_long_sequence_through_all_blocks(self, backbone: TokenBackbone) -> None:
        x, ahead = backbone.stem(pixels()), drawn(4, backbone.site.dim).expand(2, -1, -1)
        for index in backbone.token_blocks:
            x, ahead = naive_joint(backbone.block(index), x, ahead)
        found = two_pass(backbone, pixels(), drawn(4, backbone.site.dim))
        torch.testing.assert_close(found, ahead[:, 0], atol=1e-4, rtol=1e-4)

    def test_is_not_what_one_pass_gives(self) -> None:
        sam, tokens = tiny_backbone(), drawn(4, 16)
        assert not torch.allclose(two_pass(sam, pixels(), tokens), one_pass(sam, pixels(), tokens, 4)[1], atol=1e-2)

    def test_gradients_reach_the_tokens_alone(self, backbone: TokenBackbone) -> None:
        tokens = drawn(4, backbone.site.dim).requires_grad_()
        before = backbone.weights_digest()
        two_pass(backbone, pixels(), tokens).square().sum().backward()
        assert tokens.grad is not None and bool((tokens.grad.abs().sum(1) > 0).all())
        assert all(parameter.grad is None for parameter in backbone.module.parameters())
        assert backbone.weights_digest() == before
