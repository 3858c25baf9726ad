"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from samcl_core.backbones.base import Backbone
from samcl_core.backbones.checkpoints import KNOWN, load_state, locate, read_state, verified
from samcl_core.backbones.nano import load_nano, tiny_backbone
from samcl_core.backbones.sam import SAM_NAMES, SamBackbone, build_sam
from samcl_core.backbones.sam2 import SAM2_NAMES, Sam2Backbone, build_sam2, tiny_sam2_backbone
from samcl_core.config import BackboneParams
from samcl_core.errors import ConfigError, UsageError

__all__ = ["load_backbone", "register_backbone", "registered_backbones", "resolve_device"]

Loader = Callable[[BackboneParams], Backbone]
_LOADERS: dict[str, Loader] = {}


def register_backbone(name: str, loader: Loader) -> None:
    """Make ``name`` known to ``load_backbone``. ``loader(params)`` returns the backbone on the CPU.

    Raises:
        ValueError: ``name`` is already registered with another loader.
    """
    if _LOADERS.get(name, loader) is not loader:
        raise ValueError(f"backbone {name!r} is already registered by {_LOADERS[name]!r}")
    _LOADERS[name] = loader


def registered_backbones() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_LOADERS))


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU where there is one, else the CPU; other names are what torch calls them.

    Raises:
        UsageError: a GPU is asked for and there is none, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as exc:
        raise UsageError(f"device is {device!r}, expected auto, cpu, cuda or cuda:N") from exc
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device is {device!r}, and torch finds {torch.cuda.device_count()} CUDA device(s)",
            hint="set device: cpu in params.yaml",
        )
    return resolved


def load_backbone(params: BackboneParams, device: str = "cpu") -> Backbone:
    """The frozen backbone that ``params`` names, with verified weights, on ``device``.

    Raises:
        ConfigError: no backbone has that name.
        UsageError: the device is not there.
        CheckpointMissing: its weights are not on this machine; the hint is the command that fetches them.
        CheckpointMismatch: the file has another sha256, or is for another network.
        UnsafeFileError: the file holds more than tensors.
    """
    if params.name not in _LOADERS:
        raise ConfigError("backbone", [f"name is {params.name!r}, expected one of {list(registered_backbones())}"])
    target = resolve_device(device)
    return _LOADERS[params.name](params).to(target)


def _load_official(build: Callable[[str], Any], wrap: Callable[..., Backbone], params: BackboneParams) -> Backbone:
    if params.checkpoint is None:
        path, expected = locate(params.name), KNOWN[params.name].sha256
    else:
        path, expected = Path(params.checkpoint).expanduser(), str(params.sha256)
    sha256 = verified(path, expected)
    state, is_pretrained = read_state(path)
    model = build(params.name)
    load_state(model, state, str(path))
    return wrap(params.name, model, sha256=sha256, is_pretrained=is_pretrained)


def _load_nano(params: BackboneParams) -> Backbone:
    if params.checkpoint is None:
        return load_nano()
    return load_nano(Path(params.checkpoint).expanduser(), params.sha256)


def _load_tiny(build: Callable[[], Backbone], params: BackboneParams) -> Backbone:
    if params.checkpoint is not None:
        raise ConfigError("backbone", [f"checkpoint is {params.checkpoint!r}, and {params.name} takes none"])
    return build()


for _name in SAM_NAMES:
    register_backbone(_name, partial(_load_official, build_sam, SamBackbone))
for _name in SAM2_NAMES:
    register_backbone(_name, partial(_load_official, build_sam2, Sam2Backbone))
register_backbone("sam_nano", _load_nano)
register_backbone("tiny", partial(_load_tiny, tiny_backbone))
register_backbone("tiny_sam2", partial(_load_tiny, tiny_sam2_backbone))
