"""``samcl pretrain``: weights, model card and MLflow run; and all of them without MLflow, one after the other."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from flows.cli.pretrain import pretrain
from samcl_core.backbones import load_nano
from samcl_core.files import digest_files, sha256_file
from samcl_core.training.pretrain import PretrainOptions
from tasks.tracking import open_tracker

pytestmark = pytest.mark.pipeline

TINY = ("--batch-size", 1, "--objects", 1, "--workers", 0, "--device", "cpu", "--score-images", 1)
PAGE = Path(__file__).parents[2] / "docs" / "pretrain.md"
FILES = ["curve.jsonl", "sam_nano.json", "sam_nano.md", "sam_nano.safetensors"]
Samcl = Callable[..., tuple[int, str, str]]


def test_the_options_say_what_the_core_does_without_them() -> None:
    given = {name: value.default for name, value in inspect.signature(pretrain).parameters.items()}
    own = asdict(PretrainOptions())
    assert {name: given[name] for name in own if name in given} == {name: own[name] for name in own if name in given}
    table = dict(re.findall(r"^\| `--([a-z-]+)` \| ([0-9.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name.replace("-", "_"): float(value) for name, value in table.items()} == {
        name: own[name] for name in own if name in given
    }


def test_weights_card_and_run(samcl: Samcl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, said, err = samcl("pretrain", out, "--steps", 2, *TINY)
    assert code == 0, err
    assert "warning: no MLflow run was written" in err
    assert "zero-shot IoU" in said
    weights = digest_files(out)["sam_nano.safetensors"]
    assert f"sha256: {weights}" in said
    assert load_nano(out / "sam_nano.safetensors").is_pretrained

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, said, err = samcl("pretrain", out, "--steps", 2, *TINY, "--json")
    assert code == 0, err
    answer = json.loads(said)
    assert answer["sha256"] == weights, "nothing was left to train"
    assert answer["training"]["options"]["steps"] == 2
    with open_tracker(out) as tracker:
        found = tracker.client.get_run(answer["run_id"])
        assert found.info.status == "FINISHED"
        assert found.data.params["guided"] == "6000"
        values = answer["scores"]["iou"]["natural"]["3 points"]
        assert found.data.metrics["zero_shot/natural/3 points"] == pytest.approx(sum(values) / 3)
        steps = [point.step for point in tracker.client.get_metric_history(answer["run_id"], "train/loss")]
        assert steps == [2]
        assert [item.path for item in tracker.client.list_artifacts(answer["run_id"])] == FILES
    assert sha256_file(out / "sam_nano.safetensors") in (out / "sam_nano.md").read_text(encoding="utf-8")

    code, _, err = samcl("pretrain", out, "--steps", 2, "--lr", "0.5", *TINY)
    assert code == 2
    assert "belongs to a training with other options" in err
