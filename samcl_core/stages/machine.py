"""What a stage opens on this machine: the backbone on its device, and the prefix cache."""

from __future__ import annotations

from pathlib import Path

from samcl_core.backbones import load_backbone
from samcl_core.config import Params
from samcl_core.stages.places import Places
from samcl_core.training import PrefixCache

__all__ = ["open_cache"]


def open_cache(root: Path, params: Params) -> PrefixCache:
    """The workspace's prefix cache with its backbone loaded on the device of ``params``.

    Raises:
        CheckpointError: the backbone's weights are missing or not the expected ones.
        UsageError: the device is not there.
    """
    backbone = load_backbone(params.backbone, params.device)
    folder = Places(root).prefix_cache if params.cache.enabled else None
    return PrefixCache(folder, backbone, max_gb=params.cache.max_gb, dtype=params.cache.dtype)
