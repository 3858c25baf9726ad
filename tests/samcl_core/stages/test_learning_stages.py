"""The steps from embeddings to the R matrix, run as functions on tiny drawn domains with the tiny backbone."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from samcl_core.backbones import load_backbone
from samcl_core.bank import Bank, Module
from samcl_core.config import Params, parse_params
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import DataError
from samcl_core.evaluation import read_r_matrix
from samcl_core.files import digest_files
from samcl_core.stages.places import BASE, Places

SCENES = {"Polyps": "polyp", "Cracks": "crack", "Nature": "natural", "Cells": "cells"}
STREAM = ("Polyps", "Cracks")


def make_params(**more: Any) -> Params:
    roles = {"Nature": "natural", "Cells": "unseen"}
    return parse_params(
        {
            "backbone": {"name": "tiny"},
            "train": {"epochs": 2, "batch_size": 4},
            "selector": {"kind": "gaussian"},
            "domains": {name: {"role": roles.get(name, "learn")} for name in SCENES},
            "modules": {name: {} for name in STREAM},
            "stream": {"Polyps": {"previous": BASE}, "Cracks": {"previous": "Polyps"}},
            **more,
        }
    )


def run(root: Path, params: Params, stage: str, domain: str = "") -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(f"samcl_core.stages.{stage}").run(root, params, domain)
    json.dumps(result, allow_nan=False)
    return result


def run_all(root: Path, params: Params) -> None:
    for name, scene in SCENES.items():
        write_domain(root / "data" / "raw" / name, scene, 6, 3, 64, 0)
        for stage in ("ingest", "points", "embed"):
            run(root, params, stage, name)
    for name in STREAM:
        run(root, params, "train", name)
    run(root, params, BASE)
    for name in STREAM:
        run(root, params, "bank", name)
        run(root, params, "evaluate", name)
    run(root, params, "report")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learnt")
    run_all(root, make_params())
    return root


def test_the_same_inputs_give_the_same_bytes(learnt: Path, tmp_path: Path) -> None:
    run_all(tmp_path, make_params())
    folders = ("modules", "banks", "embeddings", "metrics/steps", "metrics/images", "pictures")
    for folder in folders:
        first, second = digest_files(learnt / folder), digest_files(tmp_path / folder)
        assert first
        assert first == second, folder


def test_rows_and_columns_of_the_r_matrix(learnt: Path) -> None:
    frame = read_r_matrix(Places(learnt).r_matrix)
    iou = frame[frame["metric"] == "iou"]
    cells = set(zip(iou["step"], iou["domain"], strict=True))
    assert cells == {
        *((0, name) for name in SCENES),
        (1, "Polyps"), (1, "Cracks"), (1, "Nature"), (1, "Cells"),
        (2, "Polyps"), (2, "Cracks"), (2, "Nature"), (2, "Cells"),
    }  # fmt: skip
    summary = json.loads(Places(learnt).summary.read_text())
    assert summary["num_domains"] == 2
    assert {"iou/samcl_aa", "iou/samcl_fm", "iou/samcl_ft", "iou/natural_retention", "iou/unseen_gain"} <= set(summary)


def test_a_bank_is_the_one_before_it_and_one_module(learnt: Path) -> None:
    places = Places(learnt)
    first, second = Bank.load(places.bank("Polyps")), Bank.load(places.bank("Cracks"))
    assert (first.names, second.names) == (("Polyps",), ("Polyps", "Cracks"))
    old, new = digest_files(places.bank("Polyps")), digest_files(places.bank("Cracks"))
    kept = {name: digest for name, digest in old.items() if name.startswith("modules/")}
    assert kept
    assert kept.items() <= new.items()


def test_modules_move_and_the_backbone_does_not(learnt: Path) -> None:
    backbone = load_backbone(make_params().backbone)
    module = Module.load(Places(learnt).module("Polyps"))
    assert module.backbone_sha256 == backbone.sha256 == backbone.weights_digest()
    assert any(float(tensor.abs().sum()) > 0 for name, tensor in module.tensors.items() if name.startswith("B_"))


def test_a_domain_does_not_depend_on_the_others(learnt: Path, tmp_path: Path) -> None:
    params = make_params(domains={"Cracks": {}}, modules={"Cracks": {}}, stream={})
    write_domain(tmp_path / "data" / "raw" / "Cracks", "crack", 6, 3, 64, 0)
    for stage in ("ingest", "points", "train"):
        run(tmp_path, params, stage, "Cracks")
    assert digest_files(tmp_path / "modules" / "Cracks") == digest_files(learnt / "modules" / "Cracks")


def test_test_data_that_changed_since_it_was_embedded_is_refused(learnt: Path, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(learnt, root)
    points = root / "data" / "Polyps" / "test" / "masks" / "points.json"
    entries = json.loads(points.read_text())
    name = sorted(entries)[0]
    entries[name][0] = [[float(y), float(x)] for x, y in entries[name][0]]
    points.write_text(json.dumps(entries))
    before = digest_files(root / "metrics")
    with pytest.raises(DataError, match=r"test data of Polyps has digest [0-9a-f]{12}, expected [0-9a-f]{12}"):
        run(root, make_params(), "evaluate", "Cracks")
    assert digest_files(root / "metrics") == before


def test_a_report_without_any_domain_says_what_to_do(tmp_path: Path) -> None:
    params = make_params(domains={}, modules={}, stream={})
    run(tmp_path, params, BASE)
    assert Bank.load(Places(tmp_path).bank(BASE)).names == ()
    with pytest.raises(DataError, match=r"nothing was evaluated yet[\s\S]*samcl arrive"):
        run(tmp_path, params, "report")
