"""Learnt tokens that go with the patch tokens through the frozen encoder, after MoDA (arXiv 2412.06418, section 3.3).

Token 0 is the Global Feature Token, whose output is the query; the others assist it. In the **two-pass** form, the
paper's, patches attend to the tokens, too: their features change, so that the encoder runs once for the query and once
for the mask. In the **one-pass** form patches never attend to tokens: their features are those of the plain encoder,
bit for bit, and the query comes out of the same pass.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Hooks, Prefix, PrefixPlan
from samcl_core.backbones.blocks import run_block

__all__ = [
    "BlockTap",
    "PatchTap",
    "TokenBackbone",
    "TokenTap",
    "joint_step",
    "normed_patches",
    "one_pass",
    "token_step",
    "two_pass",
]


class BlockTap(Protocol):
    """What looks at the frozen blocks while a prefix is computed; it changes nothing.

    Attributes:
        depth: blocks below this index are looked at, and run where the prefix itself would end earlier.
    """

    depth: int

    def __call__(self, block: Any, x: Tensor) -> None:
        """See the (B, G, G, C) input of one of ``TokenBackbone.token_blocks`` before that block runs."""
        ...


@runtime_checkable
class TokenBackbone(Backbone, Protocol):
    """A backbone whose encoder can take tokens.

    Attributes:
        token_blocks: indices of the blocks that keep width and resolution: all blocks of SAM; of SAM 2's trunk those
            of the third stage after its first, which changes both.
    """

    token_blocks: range

    def prefix(self, pixels: Tensor, plan: PrefixPlan = PrefixPlan(), tap: BlockTap | None = None) -> Prefix:
        """As ``Backbone.prefix``; ``tap`` sees the input of each of the ``token_blocks`` below its depth."""
        ...

    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed pixels to the (B, G, G, C) input of the first of ``token_blocks``."""
        ...

    def block(self, index: int) -> Any:
        """One block of the encoder."""
        ...


def token_step(block: Any, tokens: Tensor, patches: Tensor) -> Tensor:
    """Tokens through one frozen block: they attend to all patches and to each other, in windowed blocks, too.

    Pairs with a token have no relative position. A query meets keys as (W_k^T q) . x: the keys of the patches are never
    computed (their bias adds the same to all scores of a query), and values are projected after the weighted sum.

    Args:
        block: an official block that keeps width and resolution.
        tokens: (B, T, C).
        patches: (B, N, C) the block's patch tokens after its first norm.

    Returns:
        (B, T, C); gradients reach ``tokens``, and ``patches`` where they take any.
    """
    attn, (num, dim) = block.attn, tokens.shape[1:]
    heads = int(attn.num_heads)
    query, key, value = attn.qkv.weight.reshape(3, heads, dim // heads, dim)
    bias = attn.qkv.bias.reshape(3, heads, 1, dim // heads)
    normed = block.norm1(tokens)
    asked = torch.einsum("btc,hdc->bhtd", normed, query) + bias[0]
    asked = torch.einsum("bhtd,hdc->bhtc", asked * (dim // heads) ** -0.5, key).flatten(1, 2)
    weights = torch.cat([asked @ normed.mT, asked @ patches.mT], 2).softmax(2)
    seen = (weights[..., :num] @ normed + weights[..., num:] @ patches).unflatten(1, (heads, num))
    found = torch.einsum("bhtc,hdc->bhtd", seen, value) + bias[2]
    tokens = tokens + attn.proj(found.transpose(1, 2).flatten(2))
    stepped: Tensor = tokens + block.mlp(block.norm2(tokens))
    return stepped


def joint_step(block: Any, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Patches and tokens through one frozen block, each seeing the other.

    In a windowed block a patch attends to its window and to all tokens.

    Args:
        block: as for ``token_step``.
        x: (B, H, W, C) patch tokens.
        tokens: (B, T, C).

    Returns:
        Both after the block.
    """
    _, key, value = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
    stepped = token_step(block, tokens, block.norm1(x).flatten(1, 2))
    return run_block(block, x, 0, _Seen(key, value)), stepped


class _Seen(Hooks):
    """Tokens as keys and values for every patch."""

    is_inside = True

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self._parts = key, value

    def context(self, block: int) -> tuple[Tensor, Tensor]:
        return self._parts


class TokenTap:
    """Takes tokens along with the patches of a prefix.

    Attributes:
        tokens: (B, T, C) as they are after the blocks so far.
        depth: as in ``BlockTap``.
    """

    def __init__(self, tokens: Tensor, depth: int) -> None:
        self.tokens, self.depth = tokens, depth

    def __call__(self, block: Any, x: Tensor) -> None:
        """One block."""
        self.tokens = token_step(block, self.tokens, block.norm1(x).flatten(1, 2))


class PatchTap:
    """Keeps what tokens will attend to.

    Attributes:
        patches: one (B, N, C) a block: the patch tokens after its first norm.
        depth: as in ``BlockTap``.
    """

    def __init__(self, depth: int) -> None:
        self.patches: list[Tensor] = []
        self.depth = depth

    def __call__(self, block: Any, x: Tensor) -> None:
        """One block."""
        self.patches.append(block.norm1(x).flatten(1, 2))


def normed_patches(backbone: TokenBackbone, pixels: Tensor, depth: int) -> list[Tensor]:
    """What the tokens of a batch attend to in the one-pass form, one (B, N, C) a block; it does not depend on them."""
    tap = PatchTap(depth)
    backbone.prefix(pixels, PrefixPlan(), tap)
    return tap.patches


def one_pass(
    backbone: TokenBackbone, pixels: Tensor, tokens: Tensor, depth: int, plan: PrefixPlan = PrefixPlan()
) -> tuple[Prefix, Tensor]:
    """Prefix and query from one pass, without gradients.

    Args:
        backbone: frozen.
        pixels: (B, 3, S, S) preprocessed.
        tokens: (T, C).
        depth: the tokens go through the ``token_blocks`` below this index.
        plan: of the prefix, which is exactly what it is without tokens.

    Returns:
        The prefix, and (B, C) the output of token 0.
    """
    tap = TokenTap(tokens.expand(len(pixels), -1, -1), depth)
    prefix = backbone.prefix(pixels, plan, tap)
    return prefix, tap.tokens[:, 0]


def two_pass(backbone: TokenBackbone, pixels: Tensor, tokens: Tensor) -> Tensor:
    """The query of the paper's form, from a pass of its own through all ``token_blocks``.

    Args:
        backbone: frozen.
        pixels: (B, 3, S, S) preprocessed.
        tokens: (T, C); gradients reach them.

    Returns:
        (B, C) the output of token 0.
    """
    x, ahead = backbone.stem(pixels), tokens.expand(len(pixels), -1, -1)
    for index in backbone.token_blocks:
        x, ahead = joint_step(backbone.block(index), x, ahead)
    return ahead[:, 0]
