"""Several domains with one fit of the selector at the end: the same last bank, no row between, all formulas defined."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from samcl_core.bank import Bank, describe_bank, verify_bank
from samcl_core.config import Params, parse_params
from samcl_core.domains.synthetic import write_domain
from samcl_core.evaluation.rmatrix import read_r_matrix
from samcl_core.files import digest_files
from samcl_core.inference import Segmenter
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import BASE, Places

SCENES = {"Polyps": "polyp", "Cracks": "crack", "Rails": "rail", "Nature": "natural"}
LEARNT = ("Polyps", "Cracks", "Rails")


def make_params(kind: str, *later: str) -> Params:
    """A stream in which the steps of ``later`` fit nothing."""
    before = dict(zip(LEARNT, (BASE, *LEARNT), strict=False))
    return parse_params(
        {
            "backbone": {"name": "tiny"},
            "train": {"epochs": 1, "batch_size": 4},
            "selector": {"kind": kind, "epochs": 2, "min_steps": 20},
            "domains": {name: {"role": "natural" if name == "Nature" else "learn"} for name in SCENES},
            "modules": {name: {} for name in LEARNT},
            "stream": {name: {"previous": before[name], "fit": name not in later} for name in LEARNT},
        }
    )


def run(root: Path, params: Params, stage: str, domain: str = "") -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(f"samcl_core.stages.{stage}").run(root, params, domain)
    return result


def make_banks(root: Path, params: Params) -> Places:
    run(root, params, BASE)
    for name in LEARNT:
        run(root, params, "bank", name)
        run(root, params, "evaluate", name)
    run(root, params, "report")
    return Places(root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modules, no bank yet."""
    root, params = tmp_path_factory.mktemp("trained"), make_params("gaussian")
    for name, scene in SCENES.items():
        write_domain(root / "data" / "raw" / name, scene, 4, 2, 64, 0)
        for stage in ("ingest", "points", "embed", *(["train"] if name in LEARNT else [])):
            run(root, params, stage, name)
    return root


@pytest.fixture(scope="module", params=["gaussian", "mlp"])
def both(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The same modules one by one, and the last two as one back-fill."""
    top = tmp_path_factory.mktemp(str(request.param))
    places = []
    for name, later in (("one-by-one", ()), ("back-fill", ("Cracks",))):
        shutil.copytree(trained, top / name)
        places.append(make_banks(top / name, make_params(request.param, *later)))
    return (*places, make_params(request.param, "Cracks"))


def cells(path: Path) -> dict[tuple[int, str], float]:
    frame = read_r_matrix(path)
    rows = frame[frame["metric"] == "iou"]
    return dict(zip(zip(rows["step"], rows["domain"], strict=True), rows["value"], strict=True))


def test_the_last_bank_is_that_of_one_by_one_arrival_byte_for_byte(both: tuple[Places, Places, Params]) -> None:
    one_by_one, back_fill, _ = both
    for step in (BASE, "Polyps", "Rails"):
        assert digest_files(one_by_one.bank(step)) == digest_files(back_fill.bank(step)), step
    assert digest_files(one_by_one.scores("Polyps").parent)["Polyps.parquet"]
    assert one_by_one.scores("Polyps").read_bytes() == back_fill.scores("Polyps").read_bytes()


def test_a_step_inside_answers_like_the_bank_before_it(both: tuple[Places, Places, Params]) -> None:
    _, places, params = both
    before, inside = Bank.load(places.bank("Polyps")), Bank.load(places.bank("Cracks"))
    assert (inside.names, inside.waiting) == (("Polyps", "Cracks"), ("Cracks",))
    assert verify_bank(places.bank("Cracks")) == []
    assert describe_bank(places.bank("Cracks"))["waiting"] == ["Cracks"]
    assert describe_bank(places.bank("Rails"))["waiting"] == []
    assert places.latest_bank(params) == places.bank("Rails")
    shutil.copytree(places.root, places.root.with_name("cut"), dirs_exist_ok=True)
    cut = Places(places.root.with_name("cut"))
    shutil.rmtree(cut.bank("Rails"))
    assert cut.latest_bank(params) == cut.bank("Polyps")

    cache = open_cache(places.root, params)
    from samcl_core.domains import Domain

    samples = Domain(places.domain("Cracks")).samples("test")
    embeddings = cache.embeddings(samples)
    ours, theirs = Segmenter(cache.backbone, inside), Segmenter(cache.backbone, before)
    assert ours.route(embeddings).names == theirs.route(embeddings).names
    assert set(ours.route(embeddings, "Cracks").names) == {"Cracks"}


def test_there_is_no_row_between_and_every_column_that_is_needed(both: tuple[Places, Places, Params]) -> None:
    one_by_one, back_fill, _ = both
    all_rows, rows = cells(one_by_one.r_matrix), cells(back_fill.r_matrix)
    assert set(cells(back_fill.scores("Cracks"))) == {(0, "Cracks"), (1, "Cracks")}
    assert {step for step, _ in rows} == {0, 1, 3}
    # Rails before it was learnt: seen by the bank of row 1, which is the last before the back-fill.
    assert set(cells(back_fill.scores("Rails"))) == {(0, "Rails"), (1, "Rails"), *((3, name) for name in SCENES)}
    same = {cell: value for cell, value in rows.items() if cell != (1, "Rails")}
    assert same.items() <= all_rows.items()
    assert {path.name for path in back_fill.pictures("Rails").iterdir()} == {"Cracks.png", "Rails.png", "Nature.png"}
    assert [path.name for path in back_fill.pictures("Cracks").iterdir()] == ["README.md"]

    found = json.loads(back_fill.summary.read_text())
    assert found["iou/samcl_fm"] == pytest.approx((rows[1, "Polyps"] - rows[3, "Polyps"]) / 3)
    assert found["iou/samcl_ft"] == pytest.approx((rows[1, "Cracks"] + rows[1, "Rails"]) / 2)
    assert found["iou/cosam_ff"] == pytest.approx(rows[1, "Polyps"] - rows[3, "Polyps"])
    expected = json.loads(one_by_one.summary.read_text())
    assert set(found) == set(expected)
    assert found["iou/samcl_aa"] == expected["iou/samcl_aa"]


def test_a_stream_that_begins_with_a_back_fill(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "w")
    places = make_banks(tmp_path / "w", make_params("gaussian", "Polyps", "Cracks"))
    first = Bank.load(places.bank("Polyps"))
    assert (first.selector.kind, first.waiting) == ("plain", ("Polyps",))
    assert {step for step, _ in cells(places.r_matrix)} == {0, 3}
    summary = json.loads(places.summary.read_text())
    assert summary["iou/samcl_fm"] == 0
    assert not {"iou/samcl_ft", "iou/cosam_ff", "iou/gem_fwt"} & set(summary), "there was no bank before"
