"""What a stage opens on this machine: the backbone on its device, and the prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from samcl_core.adapters import build_adapter
from samcl_core.backbones import load_backbone
from samcl_core.config import Params
from samcl_core.stages.places import Places
from samcl_core.training import PrefixCache

__all__ = ["cache_dtype", "open_cache"]


def open_cache(root: Path, params: Params) -> PrefixCache:
    """The workspace's prefix cache with its backbone loaded on the device of ``params``, for its kind of adapter.

    Raises:
        CheckpointError: the backbone's weights are missing or not the expected ones.
        UsageError: the device is not there.
        ConfigError: the adapter's kind is unknown, its options are not accepted, or the backbone cannot carry it.
    """
    backbone = load_backbone(params.backbone, params.device)
    folder = Places(root).prefix_cache if params.cache.enabled else None
    plan = build_adapter(params.adapter.kind, backbone.site, **params.adapter.options()).plan
    dtype = cache_dtype(params.cache.dtype, backbone.device.type)
    return PrefixCache(folder, backbone, max_gb=params.cache.max_gb, dtype=dtype, plan=plan)


def cache_dtype(name: str | None, device_type: str) -> Literal["float32", "float16"]:
    """What ``cache.dtype`` means on a device: with ``auto`` a GPU's prefixes are kept in half precision."""
    is_half = name == "float16" or (name in (None, "auto") and device_type == "cuda")
    return "float16" if is_half else "float32"
