"""In which number format the suffix is computed in training; weights, losses and updates are always float32."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["Precision", "precision_of", "precision_on"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def precision_of(name: Precision, device_type: str, *, has_bfloat16: bool) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that computes in it, else float32; the other names are what they say."""
    if name == "auto":
        return torch.bfloat16 if device_type == "cuda" and has_bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def precision_on(name: Precision, device: torch.device) -> torch.dtype:
    """``precision_of`` on a device that is here."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return precision_of(name, device.type, has_bfloat16=has_bfloat16)
