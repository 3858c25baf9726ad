"""Layers whose weights are plain tensors: one set for the whole batch, or one row for each sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["linear", "norm", "start_linear"]

_EPS = 1e-5


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, T, in) to (B, T, out) with a weight (out, in), or with each sample's own, (B, out, in); bias likewise."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    out = torch.matmul(x, weight.transpose(1, 2))
    return out if bias is None else out + bias[:, None]


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = _EPS) -> Tensor:
    """Layer norm of (B, T, C) over the last axis, with weights (C,) or each sample's own, (B, C)."""
    if weight.dim() == 1:
        return F.layer_norm(x, list(weight.shape), weight, bias, eps)
    return F.layer_norm(x, list(weight.shape[1:]), eps=eps) * weight[:, None] + bias[:, None]


def start_linear(tensor: Tensor, generator: torch.Generator, num_inputs: int | None = None) -> None:
    """Fill a weight (out, in), or a bias beside ``num_inputs`` inputs, in place as torch starts a ``Linear``."""
    bound = 1 / math.sqrt(tensor.shape[-1] if num_inputs is None else num_inputs)
    tensor.uniform_(-bound, bound, generator=generator)
