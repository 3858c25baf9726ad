"""A two-domain benchmark on the smallest SAM: what is looked up equals what a real bank does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from samcl_core.benchmarks import StreamSpec, is_done, parse_method, plan, read_cells, run_unit, to_do
from samcl_core.benchmarks.ground import Ground
from samcl_core.benchmarks.rows import selector_params
from samcl_core.errors import UsageError
from samcl_core.evaluation.rmatrix import SCORES, SELECTOR_ACCURACY, pivot, samcl_fm
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.strategies import base_bank, extend_bank
from samcl_core.strategies.base import State

SAMCL = ("zero_shot", "naive", "joint", "oracle", "bank_gaussian", "bank_mlp", "bank_reference")
SPEC = StreamSpec(
    name="two",
    title="Two domains",
    size_px=64,
    num_train=6,
    num_test=3,
    domains={
        "Polyp": {"scene": "polyp"},
        "Crack": {"scene": "crack"},
        "Photos": {"scene": "natural", "role": "natural"},
        "Cells": {"scene": "cells", "role": "unseen"},
    },
    params={
        "backbone": {"name": "tiny"},
        # As sequences keep their module: so that both kinds of rows can be compared to the bit.
        "train": {"epochs": 1, "module_dtype": "float32"},
        "selector": {"epochs": 2, "min_steps": 0, "buffer_size": 4},
        "adapter": {"rank": 2},
    },
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    for unit in plan(SPEC, strategies=["samcl", "moda"], seeds=[0], orders=["default", "reverse"]):
        run_unit(folder, SPEC, unit, "cpu")
    return folder


def test_units_come_after_what_they_need_and_are_done_once(root: Path) -> None:
    units = plan(SPEC, strategies=["samcl", "moda"], seeds=[0, 1], orders=["default", "reverse"])
    place = {unit.id: position for position, unit in enumerate(units)}
    assert len(place) == len(units)
    assert all(place[need] < place[unit.id] for unit in units for need in unit.needs)
    first = [unit for unit in units if unit.seed == 0]
    assert all(is_done(root, unit) for unit in first)
    before = {unit.id: unit.path(root).stat().st_mtime_ns for unit in first}
    for unit in first:
        run_unit(root, SPEC, unit, "cpu")
    assert {unit.id: unit.path(root).stat().st_mtime_ns for unit in first} == before
    only = plan(SPEC, strategies=["naive"], seeds=[0], orders=["default"])
    assert [unit.kind for unit in only] == ["data", "plain", "cell"]


def test_every_strategy_has_its_cells(root: Path) -> None:
    cells = read_cells(root)
    assert Counter(cell.strategy for cell in cells) == {
        name: 1 if name in ("zero_shot", "joint") else 2 for name in (*SAMCL, "moda")
    }
    assert list(dict.fromkeys(cell.strategy for cell in cells)) == [*SAMCL, "moda"]
    for cell in cells:
        steps = {"zero_shot": [0], "joint": [0, 2]}.get(cell.strategy, [0, 1, 2])
        matrix = pivot(cell.frame, "iou", cell.order)
        assert list(matrix.index) == steps
        assert not matrix.isna().any(axis=None)
        assert ("selector_accuracy" in set(cell.frame["metric"])) == cell.strategy.startswith(("bank", "moda"))


def test_looked_up_scores_are_those_of_the_real_bank(root: Path) -> None:
    cell = next(cell for cell in read_cells(root) if (cell.strategy, cell.order_name) == ("bank_gaussian", "reverse"))
    ground = ground_of(root, "bank_gaussian")
    params = selector_params(ground)
    backbone = ground.cache.backbone
    bank = base_bank(backbone.name, backbone.sha256, {"Photos": ground.embeddings("Photos", "train")}, params, 0)
    modules = {module.domain: module for module in ground.modules()}
    for name in cell.order:
        bank = extend_bank(bank, modules[name], ground.embeddings(name, "train"), params, 0)
    segmenter = Segmenter(backbone, bank)
    last = cell.frame[cell.frame["step"] == 2].set_index(["domain", "metric"])["value"]
    for domain in SPEC.domains:
        scored = score_samples(segmenter, ground.cache, ground.samples(domain, "test"), ground.params.evaluate)
        for metric in SCORES:
            assert last[domain, metric] == pytest.approx(scored[metric].mean(), abs=1e-6)
        right = (scored["module"] == (domain if domain in cell.order else "plain")).mean()
        assert last[domain, SELECTOR_ACCURACY] == pytest.approx(right)


def test_the_oracle_forgets_nothing_and_is_plain_before_it_learnt(root: Path) -> None:
    cells = {(cell.strategy, cell.order_name): cell for cell in read_cells(root)}
    oracle = cells["oracle", "default"]
    matrix = pivot(oracle.frame, "iou", oracle.order)
    assert samcl_fm(matrix, oracle.order) == 0
    zero = pivot(cells["zero_shot", "default"].frame, "iou", oracle.order).loc[0]
    assert (matrix.loc[1, ["Crack", "Photos", "Cells"]] == zero[["Crack", "Photos", "Cells"]]).all()
    first, second = (pivot(cells["oracle", name].frame, "iou").loc[2] for name in ("default", "reverse"))
    pd.testing.assert_series_equal(first, second)


def test_the_sequence_goes_on_from_the_module_before(root: Path) -> None:
    cells = {(cell.strategy, cell.order_name): cell for cell in read_cells(root)}
    naive, joint = cells["naive", "default"], cells["joint", "default"]
    assert naive.facts["num_parameters"] == joint.facts["num_parameters"]
    assert cells["bank_gaussian", "default"].facts["num_parameters"] == 2 * naive.facts["num_parameters"]
    alone = pivot(cells["oracle", "default"].frame, "iou").loc[1, "Polyp"]
    first, second = (pivot(naive.frame, "iou").loc[step, "Polyp"] for step in (1, 2))
    assert first == alone and second != first
    # Of a finished cell the last state is kept, and nothing of the way there.
    folder = naive.path.with_suffix("")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["2"]
    assert State.load(folder / "2").tasks == ("Polyp", "Crack")


def test_sizes_and_times_of_selectors_are_facts(root: Path) -> None:
    facts = {cell.strategy: cell.facts for cell in read_cells(root)}
    assert facts["bank_mlp"]["state_bytes_per_domain"] >= 4 * ground_dim(root) * 4  # four stored embeddings
    assert facts["bank_gaussian"]["fit_ms"] > 0


def ground_of(root: Path, name: str) -> Ground:
    return Ground(root, SPEC, 0, parse_method(name), "cpu")


def ground_dim(root: Path) -> int:
    return ground_of(root, "zero_shot").cache.backbone.site.dim


def test_pictures_are_drawn(root: Path) -> None:
    assert {path.name for path in (root / "masks").glob("*.png")} == {f"{name}-seed-0.png" for name in SPEC.domains}


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="strategy magic is unknown, expected some of zero_shot, naive"):
        plan(SPEC, strategies=["magic"], seeds=[0], orders=["default"])
    with pytest.raises(UsageError, match="order up is unknown, expected some of default, reverse, positions"):
        plan(SPEC, strategies=["naive"], seeds=[0], orders=["up"])
    with pytest.raises(UsageError, match="no seed"):
        plan(SPEC, strategies=["naive"], seeds=[], orders=["default"])


def test_only_what_unfinished_cells_need_is_to_do(root: Path) -> None:
    units = plan(SPEC, strategies=["samcl"], seeds=[0], orders=["default", "reverse"])
    assert to_do(root, units) == frozenset()
    more = plan(SPEC, strategies=["bank@lora", "oracle"], seeds=[0], orders=["default"])
    assert to_do(root, more) == {
        *("prefixes/lora/seed-0", "modules/lora/Polyp/seed-0", "modules/lora/Crack/seed-0", "scores/lora/seed-0"),
        "cells/bank@lora/default/seed-0",
    }


def test_moda_chooses_a_learnt_domain_for_everything(root: Path) -> None:
    cell = next(cell for cell in read_cells(root) if (cell.strategy, cell.order_name) == ("moda", "default"))
    first = pivot(cell.frame, SELECTOR_ACCURACY).loc[1]
    assert first["Polyp"] == 1 and first["Photos"] == 0 and first["Crack"] == 0
    image_bytes = 64 * 64 * 3 * 6  # all six training images are kept: there are fewer than ten
    assert image_bytes <= cell.facts["state_bytes_per_domain"] < image_bytes + 200
    assert cell.facts["train_seconds"] > 0 and cell.settings["adapter"] == {"kind": "hq_decoder"}
