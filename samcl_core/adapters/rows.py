"""Layers whose weights are plain tensors: one set for the whole batch, or one row for each sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_linear", "linear", "norm", "start_linear"]

_EPS = 1e-5


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, T, in) to (B, T, out) with a weight (out, in), or with each sample's own, (B, out, in); bias likewise."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def add_linear(base: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``base + linear(x, weight, bias)``; where no gradient is recorded, ``base`` itself takes the sum in one pass.

    Few inputs and wide outputs: the time would go into fresh memory for intermediate results, not into the product.

    Args:
        base: (B, T, out); it may be overwritten under ``torch.no_grad``.
        x: (B, T, in).
        weight: (out, in), or (B, out, in).
        bias: (out,), or (B, out).
    """
    is_one_dtype = base.dtype == x.dtype == weight.dtype and not torch.is_autocast_enabled(base.device.type)
    if torch.is_grad_enabled() or not is_one_dtype:
        return base + linear(x, weight, bias)
    # The bias is the weight of one input more, which is 1 everywhere.
    inputs = torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1)
    kernel = torch.cat([weight, bias[..., None]], -1).transpose(-2, -1)
    return base.baddbmm_(inputs, kernel if kernel.dim() == 3 else kernel.expand(len(x), -1, -1))


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = _EPS) -> Tensor:
    """Layer norm of (B, T, C) over the last axis, with weights (C,) or each sample's own, (B, C)."""
    if weight.dim() == 1:
        return F.layer_norm(x, list(weight.shape), weight, bias, eps)
    return F.layer_norm(x, list(weight.shape[1:]), eps=eps) * weight[:, None] + bias[:, None]


def start_linear(tensor: Tensor, generator: torch.Generator, num_inputs: int | None = None) -> None:
    """Fill a weight (out, in), or a bias beside ``num_inputs`` inputs, in place as torch starts a ``Linear``."""
    bound = 1 / math.sqrt(tensor.shape[-1] if num_inputs is None else num_inputs)
    tensor.uniform_(-bound, bound, generator=generator)
