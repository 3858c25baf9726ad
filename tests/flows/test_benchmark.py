"""``samcl benchmark`` on a stream of two tiny domains: a failure, its continuation, nothing left to do, MLflow away."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samcl_core.files import digest_files
from tasks.server import Server
from tasks.tracking import open_tracker

pytestmark = pytest.mark.pipeline

STREAM = """
name: two
title: Two domains
size_px: 64
num_train: 4
num_test: 2
domains:
  Polyp: {scene: polyp}
  Crack: {scene: crack}
  Photos: {scene: natural, role: natural}
  Cells: {scene: cells, role: unseen}
orders:
  default: [Polyp, Crack]
  reverse: [Crack, Polyp]
params:
  backbone: {name: tiny}
  train: {epochs: 1}
  adapter: {rank: 2}
"""
CHOICE = ("--seeds", "0", "--orders", "default", "--strategies", "zero_shot,bank_gaussian,joint")

Samcl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(STREAM)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "stream 'nothing' is unknown, expected one of cosam, samcl, synthdomains"),
        (
            ("synthdomains", "--strategies", "naive,magic"),
            "strategy magic is unknown, expected some of zero_shot, naive",
        ),
        (("synthdomains", "--strategies", "ewc@magic"), "adapter of ewc@magic is unknown, expected one of augmodule"),
        (("synthdomains", "--strategies", ","), "no strategy is given, expected some of zero_shot"),
        (("synthdomains", "--orders", "random"), "order random is unknown, expected some of default, reverse"),
        (("synthdomains", "--seeds", "0,x"), "--seeds is '0,x', expected whole numbers"),
        (("synthdomains", "--seeds", ","), "--seeds is ',', expected whole numbers"),
    ],
)
def test_unknown_names_are_one_usage_error(
    samcl: Samcl, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = samcl("benchmark", *arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_missing_data_are_told_before_anything_begins(samcl: Samcl, tmp_path: Path) -> None:
    code, out, err = samcl("benchmark", "samcl", "--data", tmp_path, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "stream samcl: 6 of 6 data folders are missing" in err
    assert f"  - {tmp_path / 'Kvasir'}: Kvasir, polyps, Kvasir-SEG, 800 + 200 images" in err
    assert "with --data DIR" in err.rstrip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def runs_of(root: Path, kind: str) -> list[Any]:
    with open_tracker(root) as tracker:
        return list(tracker.client.search_runs([tracker.experiment_id], f"tags.`samcl.kind` = '{kind}'"))


@pytest.mark.slow
def test_a_benchmark_fails_continues_and_has_nothing_left_to_do(
    samcl: Samcl, server: Server, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"
    command = ("benchmark", stream, "--out", root, "--device", "cpu", "--workers", "2", *CHOICE)

    # A folder stands where the unit of one domain's module writes its file.
    blocker = root / "modules" / "default" / "Crack" / "seed-0.json"
    blocker.mkdir(parents=True)
    code, out, err = samcl(*command)
    assert (code, out) == (1, "")
    assert "error: train Crack, default profile, seed 0: cannot write " in err
    assert "not begun because of it: 3 unit(s)" in err
    assert "finished and kept: 5 of 9 units" in err
    assert err.rstrip().splitlines()[-1].startswith("next: ")
    assert "Traceback" not in err
    assert (root / "cells/joint/default/seed-0.parquet").is_file()
    assert not (root / "report").exists()

    blocker.rmdir()
    code, out, err = samcl(*command)
    assert code == 0, err
    lines = err.splitlines()
    assert any(line.startswith("train Polyp, default profile, seed 0 up to date") for line in lines)
    assert any(line.startswith("train Crack, default profile, seed 0 ran") for line in lines)
    assert "AA (SAMCL)" in out and "one module, trained jointly" in out
    assert f"tables and plots: {root / 'report'}\nmasks beside the truth: {root / 'masks'}" in out
    page = (root / "report" / "table.md").read_text()
    assert f"`samcl benchmark two.yaml {' '.join(CHOICE)}`" in page
    assert {path.name for path in (root / "report").iterdir()} >= {"table.csv", "per_domain.md", "domains.jpg"}

    cells, reports = runs_of(root, "benchmark-cell"), runs_of(root, "benchmark")
    assert sorted(found.data.params["strategy"] for found in cells) == ["bank_gaussian", "joint", "zero_shot"]
    bank = next(found for found in cells if found.data.params["strategy"] == "bank_gaussian")
    assert (bank.data.params["order"], bank.data.params["backbone"]) == ("Polyp,Crack", "tiny")
    assert (bank.data.params["adapter"], bank.data.params["adapter.rank"]) == ("augmodule", "2")
    assert {"summary/aa", "summary/fit_ms", "iou/Polyp", "boundary_iou/Cells"} <= set(bank.data.metrics)
    with open_tracker(root) as tracker:
        history = tracker.client.get_metric_history(bank.info.run_id, "iou/Crack")
        stored = {item.path for item in tracker.client.list_artifacts(reports[0].info.run_id, "report")}
    assert [point.step for point in history] == [0, 1, 2]
    assert {"report/table.md", "report/comparison.png"} <= stored

    before = digest_files(root / "report")
    values = json.loads(samcl(*command, "--json")[1])
    units = {name: stage["outcome"] for name, stage in values["stages"].items() if "seed" in name}
    assert len(units) == 9 and set(units.values()) == {"skipped"}
    assert values["results"]["bank_gaussian"]["aa"]["n"] == 1
    assert values["mlflow_runs"][-1] == reports[0].info.run_id
    assert len(runs_of(root, "benchmark-cell")) == 3
    assert digest_files(root / "report") == before

    # Without MLflow the results stay, and the next command is said.
    shutil.rmtree(root / "report")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        code, out, err = samcl(*command)
    assert code == 0
    assert "warning: not logged to MLflow: " in err and "next: start or repair MLflow" in err
    assert digest_files(root / "report") == before

    # One strategy more: only its own units run.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    more = (*command[:-1], "zero_shot,bank_gaussian,joint,ewc@augmodule", "--json")
    code, out, err = samcl(*more)
    assert code == 0, err
    values = json.loads(out)
    ran = {name for name, stage in values["stages"].items() if "seed" in name and stage["outcome"] != "skipped"}
    assert ran == {"ewc@augmodule, order default, seed 0"}
    found = {run.data.params["strategy"]: run.data.params for run in runs_of(root, "benchmark-cell")}
    assert len(found) == 4
    assert (found["ewc@augmodule"]["adapter"], found["ewc@augmodule"]["train.epochs"]) == ("augmodule", "1")
    assert "strategy.weight" in found["ewc@augmodule"]

    code, _, err = samcl(*command, "--num-test", "3")
    assert code == 2
    assert "holds a benchmark with another stream" in err
