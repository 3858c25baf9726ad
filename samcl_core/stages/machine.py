"""What a stage opens on this machine: device, backbone and prefix cache."""

from __future__ import annotations

from pathlib import Path

import torch

from samcl_core.backbones import load_backbone
from samcl_core.config import Params
from samcl_core.errors import UsageError
from samcl_core.stages.places import Places
from samcl_core.training.prefix_cache import PrefixCache

__all__ = ["open_cache", "resolve_device"]


def resolve_device(wanted: str) -> str:
    """``auto`` to ``cuda`` where there is one, else ``cpu``; other names unchanged.

    Raises:
        UsageError: a CUDA device is asked for and none is there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device is {wanted!r} but no CUDA device is visible", hint="set `device: auto` in params.yaml")
    return wanted


def open_cache(root: Path, params: Params) -> PrefixCache:
    """The workspace's prefix cache with its backbone loaded on the device of ``params``."""
    backbone = load_backbone(params.backbone, resolve_device(params.device))
    folder = Places(root).prefix_cache if params.cache.enabled else None
    return PrefixCache(folder, backbone, max_gb=params.cache.max_gb, dtype=params.cache.dtype)
