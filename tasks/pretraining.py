"""A pretraining as an MLflow run, written from the files that it left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from samcl_core.errors import DataError
from samcl_core.files import digest_json, sha256_file
from tasks.tracking import Record, find_or_log, metrics_at, open_tracker, prepare

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["CARD", "CURVE", "WEIGHTS", "log_pretraining"]

WEIGHTS = "sam_nano.safetensors"
CARD = "sam_nano.md"
CURVE = "curve.jsonl"


def log_pretraining(out: Path) -> str:
    """The run of the weights in ``out``: options, curve, scores, and the files.

    Returns:
        The run's id; an earlier finished run of the same weights and scores is found again.

    Raises:
        DataError: the files are not there.
        RegistryUnavailable: MLflow cannot be reached; the files are as they were.
    """
    weights = out / WEIGHTS
    files = [weights, weights.with_suffix(".json"), out / CARD, out / CURVE]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{', '.join(missing)} missing", hint=f"samcl pretrain {out}")
    about = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    prepare()
    record = Record(
        kind="pretraining",
        digest=digest_json({"weights": sha256_file(weights), "scores": about["scores"]}),
        name=f"pretrain sam_nano {about['training']['options']['steps']}",
        tags={"weights_sha256": sha256_file(weights), "command": about["training"]["command"]},
        params=_params(about["training"]),
        metrics=[*_curve(out / CURVE), *_final(about)],
        inputs=[],
        artifacts=[(file, "") for file in files],
    )
    with open_tracker(out) as tracker:
        return find_or_log(tracker, record)


def _params(training: dict[str, Any]) -> dict[str, str]:
    shown = {**training["options"], **{name: training[name] for name in ("device", "num_parameters", "samcl", "torch")}}
    return {name: str(value) for name, value in shown.items()}


def _curve(path: Path) -> Iterator[Metric]:
    for line in path.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        values = {f"train/{name}": float(point[name]) for name in ("loss", "iou", "lr")}
        yield from metrics_at(values, step=int(point["step"]))


def _final(about: dict[str, Any]) -> list[Metric]:
    """Mean of the seeds, by pictures and kind of prompt; and how long the training took."""
    values = {
        f"zero_shot/{name}/{kind}": fmean(seeds)
        for name, kinds in about["scores"]["iou"].items()
        for kind, seeds in kinds.items()
    }
    seconds = float(about["training"]["seconds"])
    return metrics_at({**values, "training/seconds": seconds}, step=about["training"]["options"]["steps"])
