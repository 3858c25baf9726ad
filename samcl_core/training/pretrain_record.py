"""What is kept of a pretraining beside its weights: its curve, and where the weights come from."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from samcl_core import __version__
from samcl_core.files import canonical_json, write_atomic
from samcl_core.training.pretrain_options import PretrainOptions
from samcl_core.training.zero_shot import Scores

__all__ = ["Curve", "provenance"]

_SUMMARY_POINTS = 16

Point = dict[str, float]


class Curve:
    """Loss, IoU and rate of a training as JSON lines, one a hundred steps: means since the line before.

    Call it after every step. A training that continues keeps the lines of the steps that it does not repeat.

    Attributes:
        points: ``step``, ``loss``, ``iou``, ``lr`` (the last one) and ``seconds`` (how long these steps took).
    """

    def __init__(self, path: Path, *, steps: int, every: int = 100) -> None:
        self._path, self._steps, self._every = path, steps, every
        self._waiting: list[Mapping[str, float]] = []
        self._since = time.monotonic()
        self._is_new = True
        self.points = _read_points(path)

    def __call__(self, done: int, numbers: Mapping[str, float]) -> None:
        """Take the ``loss``, ``iou`` and ``lr`` of step number ``done``, counted from 1."""
        if self._is_new:
            self.points = [point for point in self.points if point["step"] < done]
            self._is_new = False
        self._waiting.append(numbers)
        if done % self._every == 0 or done == self._steps:
            self._add(done)

    @property
    def seconds(self) -> float:
        """How long the steps of all lines took."""
        return sum(point["seconds"] for point in self.points)

    def _add(self, done: int) -> None:
        now = time.monotonic()
        means = {name: statistics.fmean(numbers[name] for numbers in self._waiting) for name in ("loss", "iou")}
        point = {"step": done, **means, "lr": self._waiting[-1]["lr"], "seconds": now - self._since}
        self.points.append({name: _rounded(value) for name, value in point.items()})
        self._waiting, self._since = [], now
        write_atomic(self._path, "".join(canonical_json(point) + "\n" for point in self.points).encode())


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _read_points(path: Path) -> list[Point]:
    """The lines of an earlier run; a file that is none costs its curve, never the training."""
    try:
        points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    names = {"step", "loss", "iou", "lr", "seconds"}
    return points if all(isinstance(point, dict) and names <= point.keys() for point in points) else []


def provenance(
    options: PretrainOptions,
    curve: Sequence[Point],
    scores: Scores,
    *,
    device: torch.device,
    num_parameters: int,
    num_images: int,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Where trained weights come from, as JSON: entries beside the architecture.

    Args:
        options: of the training.
        curve: the points of ``Curve``; sixteen of them are kept.
        scores: of ``score_zero_shot``, measured on the file of weights.
        device: where it was trained.
        num_parameters: of the network.
        num_images: scored pictures for each name and seed.
        seeds: of the scores.
    """
    stride = max(1, math.ceil(len(curve) / _SUMMARY_POINTS))
    return {
        "training": {
            "command": _command(options),
            "options": asdict(options),
            "num_parameters": num_parameters,
            "device": _device_name(device),
            "seconds": round(sum(point["seconds"] for point in curve)),
            "samcl": __version__,
            "torch": torch.__version__,
            "curve": list(curve[::-1][::stride])[::-1],
        },
        "scores": {"num_images": num_images, "seeds": list(seeds), "iou": scores},
    }


def _command(options: PretrainOptions) -> str:
    named = ("steps", "batch_size", "objects", "lr", "guided", "decay", "seed")
    return "samcl pretrain OUT " + " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in named)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
