"""Checkpoints of a training: whole or absent, and used only by the very same training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.errors import IntegrityError
from samcl_core.tensors import load_tensors, save_tensors

__all__ = ["TrainState", "clear_checkpoint", "load_checkpoint", "save_checkpoint"]

_FORMAT = 2
_PARTS = ("tensors", "exp_avg", "exp_avg_sq", "best")


@dataclass
class TrainState:
    """A training after ``epoch`` whole epochs.

    Attributes:
        epoch: epochs done.
        tensors: the module.
        exp_avg: Adam's first moments by tensor name; a tensor that never had a gradient has none.
        exp_avg_sq: Adam's second moments.
        steps: Adam's step count by tensor name.
        curve: one entry an epoch.
        best: the module after the best epoch so far, where there are validation samples.
        scaler: state of the loss scaling in float16; empty in other formats.
    """

    epoch: int
    tensors: ModuleTensors
    exp_avg: ModuleTensors = field(default_factory=dict)
    exp_avg_sq: ModuleTensors = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    best: ModuleTensors = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(
        epoch: int,
        tensors: Mapping[str, Tensor],
        adam: torch.optim.Adam,
        scaler: torch.amp.GradScaler,
        curve: list[dict[str, float]],
        best: Mapping[str, Tensor],
    ) -> TrainState:
        """The state of a running training."""
        moments = {name: adam.state[tensor] for name, tensor in tensors.items() if adam.state.get(tensor)}
        return TrainState(
            epoch,
            dict(tensors),
            {name: state["exp_avg"] for name, state in moments.items()},
            {name: state["exp_avg_sq"] for name, state in moments.items()},
            {name: int(state["step"]) for name, state in moments.items()},
            curve,
            dict(best),
            scaler.state_dict(),
        )

    def restore(self, adam: torch.optim.Adam, tensors: Mapping[str, Tensor], scaler: torch.amp.GradScaler) -> None:
        """Give ``adam`` its moments and ``scaler`` its scale back; ``tensors`` are the parameters by name."""
        if self.scaler:
            scaler.load_state_dict(self.scaler)
        for name, step in self.steps.items():
            device = tensors[name].device
            adam.state[tensors[name]] = {
                "step": torch.tensor(float(step)),
                "exp_avg": self.exp_avg[name].to(device, copy=True),
                "exp_avg_sq": self.exp_avg_sq[name].to(device, copy=True),
            }


def save_checkpoint(path: Path, key: str, state: TrainState) -> None:
    """Write ``state`` to one safetensors file, atomically.

    Args:
        path: the file.
        key: digest of everything the training's result depends on.
        state: what to keep.

    Raises:
        SamclError: the disk is full or the folder cannot be written; an older checkpoint stays as it was.
    """
    flat = {f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(state, part).items()}
    meta = {
        "format": _FORMAT,
        "key": key,
        "digest": _digest(flat),
        "epoch": state.epoch,
        "steps": state.steps,
        "curve": state.curve,
        "scaler": state.scaler,
    }
    save_tensors(path, flat, meta)


def load_checkpoint(path: Path, key: str) -> TrainState | None:
    """The state that ``save_checkpoint`` wrote under ``key``; ``None`` when absent, broken or of another training."""
    try:
        flat, meta = load_tensors(path)
    except (OSError, IntegrityError):
        return None
    if not isinstance(meta, dict) or (meta.get("format"), meta.get("key")) != (_FORMAT, key):
        return None
    if meta.get("digest") != _digest(flat):
        return None
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, tensor in flat.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor.clone()
    return TrainState(meta["epoch"], **parts, steps=meta["steps"], curve=meta["curve"], scaler=meta["scaler"])


def clear_checkpoint(path: Path) -> None:
    """Delete a checkpoint and the leftovers of killed writers; absent is fine."""
    path.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
