"""Checkpoints of a pretraining: one of the constant rate, from which others go on too, and one of the decay.

``<name>_constant`` holds the last state before the rate falls. Its key leaves out ``steps`` and ``decay``, on which
nothing depends until then. ``<name>`` holds the decay's own state under a key of all options.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samcl_core.errors import IntegrityError, UsageError
from samcl_core.files import digest_json
from samcl_core.tensors import load_tensors, save_tensors
from samcl_core.training.pretrain_options import PretrainOptions, is_constant

__all__ = ["resume_state", "save_state"]


def _constant_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_constant{path.suffix}")


def _key(options: PretrainOptions, network: nn.Module, is_full_rate: bool) -> str:
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    others = {"checkpoint_every", "steps", "decay"} if is_full_rate else {"checkpoint_every"}
    settings = {k: v for k, v in asdict(options).items() if k not in others}
    return digest_json({"options": settings, "shapes": shapes})


def save_state(
    path: Path, options: PretrainOptions, network: nn.Module, optimizer: torch.optim.Optimizer, done: int
) -> None:
    """Write the state after ``done`` steps where it is due: now and then, at the end, and before the rate falls."""
    is_full_rate = is_constant(options, done)
    is_turn = is_full_rate and not is_constant(options, done + 1)
    if not (is_turn or done % options.checkpoint_every == 0 or done == options.steps):
        return
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    meta = {"key": _key(options, network, is_full_rate), "step": done}
    save_tensors(_constant_file(path) if is_full_rate else path, tensors, meta)


def resume_state(path: Path, options: PretrainOptions, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the state that got furthest of those that fit ``options``; returns its number of steps.

    Raises:
        UsageError: there are checkpoints, and none fits.
    """
    usable: list[tuple[int, dict[str, Tensor]]] = []
    problems: list[str] = []
    for file in (path, _constant_file(path)):
        tensors, meta = _read(file)
        if not tensors:
            continue
        done = int(meta["step"])
        problem = _misfit(options, network, meta["key"], done, is_full_rate=file != path)
        if problem:
            problems.append(f"{file} {problem}")
        else:
            usable.append((done, tensors))
    if problems and not usable:
        raise UsageError(
            problems[-1], hint="repeat the options it was made with, choose another folder, or delete the file"
        )
    if not usable:
        return 0
    done, tensors = max(usable, key=lambda state: state[0])
    _restore(network, optimizer, tensors)
    return done


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a checkpoint; none where there is no whole one."""
    try:
        tensors, meta = load_tensors(path)
    except (FileNotFoundError, IntegrityError):
        return {}, {}
    return (tensors, meta) if isinstance(meta, dict) and {"key", "step"} <= meta.keys() else ({}, {})


def _misfit(options: PretrainOptions, network: nn.Module, key: str, done: int, *, is_full_rate: bool) -> str:
    """Why a training of ``options`` cannot go on from a checkpoint; empty where it can."""
    if key != _key(options, network, is_full_rate):
        return "belongs to a training with other options"
    if is_full_rate and not is_constant(options, done):
        turn = round((1 - options.decay) * options.steps)
        return f"has {done} steps at the full rate; with {options.steps} steps the rate falls from step {turn} on"
    return ""


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
