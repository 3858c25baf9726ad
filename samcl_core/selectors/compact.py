"""Rows of numbers in one byte each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack_rows", "pack_scaled_rows", "unpack_rows", "unpack_scaled_rows"]


def pack_rows(rows: Tensor) -> Tensor:
    """(S, C) floats below 2^126 to (S + 1, C) int8: a common binary exponent a column, then S mantissas.

    A value is off by at most 1/128 of the largest in its column, whatever the magnitude of the column.
    """
    exponents = torch.frexp(rows.double().abs().amax(0))[1].clamp(-126, 126)
    mantissas = torch.ldexp(rows.double(), 7 - exponents).round().clamp(-127, 127)
    return torch.cat([exponents[None], mantissas]).to(torch.int8)


def unpack_rows(packed: Tensor) -> Tensor:
    """(..., S + 1, C) int8 of ``pack_rows`` to (..., S, C) float64."""
    return torch.ldexp(packed[..., 1:, :].double(), packed[..., :1, :].int() - 7)


def pack_scaled_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(S, C) float64 to (S + 1, C) int8 of ``pack_rows`` and the (S,) float32 lengths that were taken out before.

    So a short row keeps as many digits as a long one, and a column of small numbers as many as one of large numbers.
    """
    lengths = rows.norm(dim=1)
    return pack_rows(rows / lengths.clamp_min(torch.finfo(torch.float32).tiny)[:, None]), lengths.float()


def unpack_scaled_rows(packed: Tensor, lengths: Tensor) -> Tensor:
    """(..., S + 1, C) int8 and (..., S) float32 of ``pack_scaled_rows`` to (..., S, C) float64."""
    return unpack_rows(packed) * lengths.double()[..., None]
