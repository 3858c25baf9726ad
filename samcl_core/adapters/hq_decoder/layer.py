"""What HQ decoders do to one batch: one more output token, and a finer mask made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.base import gathered
from samcl_core.adapters.rows import linear, norm
from samcl_core.backbones.base import Decoding, Hooks, Masks, Prompts
from samcl_core.backbones.sam import masks_of_tokens, predicted_iou, run_tokens

if TYPE_CHECKING:
    from samcl_core.adapters.hq_decoder.build import HqDecoder

__all__ = ["HqDecoderHooks"]

_EPS = 1e-6


class HqDecoderHooks(Hooks):
    """``SuffixHooks`` of one batch (HQ-SAM, arXiv 2306.01567, section 3.2).

    The token passes the frozen two-way transformer beside SAM's own. With its output t and SAM's upscaled features U::

        HQ logits = hf_mlp(t) . (embedding_maskfeature(U) + compress_vit_feat(V) + embedding_encoder(E))

    where V is the output of the encoder's first block with global attention and E that of the encoder. In training the
    masks are the HQ logits alone, as in the released code: the loss acts on them. The predicted IoU is SAM's own.

    A module of zeros is plain SAM, without the token.
    """

    def __init__(
        self, adapter: HqDecoder, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None
    ) -> None:
        """``tensors``, ``prompts`` and ``index`` as in ``Adapter.hooks``."""
        self.plan = adapter.plan
        self._config = adapter.config
        self._is_shared = index is None
        self._tensors = gathered(adapter, tensors, prompts, index)
        self._is_null = _null_rows(adapter, tensors, prompts, index)

    def decode(self, call: Decoding) -> Masks:
        """Masks of some rows of the batch: those of modules in one pass, those without one in another."""
        null = self._is_null[call.rows]
        if not bool(null.any()):
            return self._refined(call)
        if bool(null.all()):
            return call.plain()
        rows = [null.nonzero()[:, 0], (~null).nonzero()[:, 0]]
        parts = [call[rows[0]].plain(), self._refined(call[rows[1]])]
        back = torch.cat(rows).argsort()
        return Masks(torch.cat([part.logits for part in parts])[back], torch.cat([part.iou for part in parts])[back])

    def _refined(self, call: Decoding) -> Masks:
        tensors = self._tensors
        if not self._is_shared and len(call.rows) < len(self._is_null):
            tensors = {name: tensor[call.rows] for name, tensor in tensors.items()}
        token = tensors["hf_token.weight"]
        out, upscaled = run_tokens(
            call.decoder,
            call.features,
            call.position,
            call.sparse,
            call.dense,
            token[None] if self._is_shared else token,
        )
        place = 1 + len(call.decoder.mask_tokens.weight)  # type: ignore[union-attr, arg-type]
        logits = _Branches(tensors, _mlp(tensors, out[:, place])).logits(call, upscaled)
        if call.training or self._config.output == "hq":
            return Masks(logits, predicted_iou(call.decoder, out))
        plain = masks_of_tokens(call.decoder, out, upscaled)
        return Masks(plain.logits + logits, plain.iou)


def _null_rows(adapter: HqDecoder, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None) -> Tensor:
    """(B,) bool: which samples have a module of zeros. One that is being trained counts as none of them."""
    token = tensors["hf_token.weight"]
    if token.requires_grad:
        return torch.zeros(len(prompts), dtype=torch.bool, device=token.device)
    stack = {name: tensors[name][None] if index is None else tensors[name] for name in adapter.shapes()}
    null = ~stack["hf_token.weight"].flatten(1).any(1)
    # A token of zeros is rare beside the null module; only such rows are read as a whole.
    rows = null.nonzero()[:, 0]
    for tensor in stack.values():
        null[rows] &= ~tensor[rows].flatten(1).any(1)
    return null.expand(len(prompts)) if index is None else null[index]


def _mlp(tensors: Mapping[str, Tensor], token: Tensor) -> Tensor:
    """(b, D) output token to (b, D / 8) weights of the features."""
    x = token[:, None]
    for layer in range(3):
        x = linear(x, tensors[f"hf_mlp.layers.{layer}.weight"], tensors[f"hf_mlp.layers.{layer}.bias"])
        x = F.relu(x) if layer < 2 else x
    return x[:, 0]


class _Branches:
    """The three branches, each up to its product with ``kernel`` (b, D / 8).

    A last layer is linear, so its weights are multiplied with the kernel first and it has one output instead of D / 8:
    the same sums in another order, without D / 8 maps of the mask's size. A transposed convolution with stride 2
    and a 2 x 2 kernel is a product for each pixel; its four results stay side by side until the end.
    """

    def __init__(self, tensors: Mapping[str, Tensor], kernel: Tensor) -> None:
        self._tensors = tensors
        self._kernel = kernel

    def logits(self, call: Decoding, upscaled: Tensor) -> Tensor:
        """(b, 1, 4 G, 4 G) HQ logits."""
        grid = call.features.shape[-1]
        early = call.side["first_global"].to(upscaled.dtype)
        fine = self._upward("compress_vit_feat", early.flatten(1, 2))
        fine = fine + self._upward("embedding_encoder", call.features.flatten(2).transpose(1, 2))
        # rows and columns of the grid, then of the first 2 x 2, then of the second
        fine = fine.reshape(-1, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)
        return (fine + self._same_size("embedding_maskfeature", upscaled))[:, None]

    def _upward(self, branch: str, x: Tensor) -> Tensor:
        """(b, pixels, C) to (b, pixels * 4, 4), the kernel's share included."""
        weight, bias = self._tensors[f"{branch}.0.weight"], self._tensors[f"{branch}.0.bias"]
        x = torch.matmul(x, weight.movedim(-3, -1).flatten(-3))
        x = x.reshape(len(x), -1, bias.shape[-1])
        x = self._normed(branch, x + (bias if bias.dim() == 1 else bias[:, None]))
        last = self._tensors[f"{branch}.3.weight"]
        folded = torch.einsum("ioyx,bo->biyx" if last.dim() == 4 else "bioyx,bo->biyx", last, self._kernel)
        return torch.matmul(x, folded.flatten(2)) + self._last_bias(branch)

    def _same_size(self, branch: str, x: Tensor) -> Tensor:
        """(b, D / 8, H, W) to (b, H, W), the kernel's share included."""
        weight, bias = self._tensors[f"{branch}.0.weight"], self._tensors[f"{branch}.0.bias"]
        height, width = x.shape[-2:]
        if weight.dim() == 4:
            x = F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, padding=1)
        else:
            x = F.conv2d(
                x.reshape(1, -1, height, width), weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(x)
            )
            x = x.reshape(len(bias), -1, height, width)
        x = self._normed(branch, x.permute(0, 2, 3, 1).flatten(1, 2))
        last = self._tensors[f"{branch}.3.weight"]
        folded = torch.einsum("oiyx,bo->byxi" if last.dim() == 4 else "boiyx,bo->byxi", last, self._kernel)
        # Each pixel's nine products are added where the convolution would read them: at the opposite offset.
        products = torch.matmul(folded.flip(1, 2).flatten(1, 2), x.transpose(1, 2))
        summed = F.fold(products, (height, width), kernel_size=3, padding=1)[:, 0]
        return summed + self._last_bias(branch)

    def _normed(self, branch: str, x: Tensor) -> Tensor:
        weight, bias = self._tensors[f"{branch}.1.weight"], self._tensors[f"{branch}.1.bias"]
        return F.gelu(norm(x, weight, bias, _EPS))

    def _last_bias(self, branch: str) -> Tensor:
        """(b, 1, 1)"""
        return (self._kernel * self._tensors[f"{branch}.3.bias"]).sum(-1)[:, None, None]
