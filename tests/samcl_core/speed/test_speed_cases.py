"""Cases of speed: arms in turns, ratios of medians, names and groups."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samcl_core.domains import Domain
from samcl_core.errors import UsageError
from samcl_core.speed import (
    Arms,
    Case,
    Setup,
    Spent,
    case_names,
    cases,
    find_cases,
    get_case,
    machine_facts,
    measure_case,
    register_case,
)


def sleepy(calls: list[str]) -> Case:
    """Ours takes a third of the baseline."""

    def arms(setup: Setup) -> Arms:
        def arm(name: str, seconds: float) -> None:
            calls.append(name)
            time.sleep(seconds)

        return Arms(lambda: arm("baseline", 0.09), lambda: arm("ours", 0.03), {"images": 1})

    return Case("sleepy", "sleep", "sleep longer", arms, {"cpu": 2.0})


def test_arms_run_in_turns_and_the_first_turn_does_not_count(tmp_path: Path) -> None:
    calls: list[str] = []
    told: list[tuple[str, int, int]] = []
    found = measure_case(sleepy(calls), tmp_path, repeats=2, progress=lambda *what: told.append(what))
    assert calls == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]
    assert len(found.baseline_runs) == len(found.ours_runs) == 2
    assert 1.5 < found.ratio < 6
    assert found.target == 2.0
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    values = json.loads(json.dumps(found.as_json()))
    assert values["ratio"] == pytest.approx(values["baseline_median"] / values["ours_median"])
    assert values["about"] == {"images": 1}


def test_an_arm_may_measure_itself_and_a_case_may_need_no_warm_up(tmp_path: Path) -> None:
    arms = Arms(lambda: Spent(600.0), lambda: Spent(200.0))
    case = Case("heavy", "carry", "carry more", lambda setup: arms, unit="bytes", repeats=1, warm_ups=0)
    found = measure_case(case, tmp_path)
    assert found.baseline_runs == (600.0,)
    assert found.ratio == 3.0
    assert found.target is None


@pytest.mark.parametrize("name", ["ingest", "reingest"])
def test_ingest_cases_make_a_whole_domain(tmp_path: Path, name: str) -> None:
    arms = get_case(name).arms(Setup(tmp_path, 5))
    assert arms.baseline() == arms.ours() == 5
    manifest = Domain(tmp_path / "data/Pictures").manifest()
    assert manifest["split"].value_counts().to_dict() == {"train": 4, "test": 1}
    assert set(manifest["status"]) == {"ok"}


def test_cases_are_found_by_name_group_and_first_words() -> None:
    assert [case.name for case in find_cases(["reingest", "train-vit-b"])] == ["reingest", "train-vit-b"]
    assert [case.name for case in find_cases(["evaluate-vit-b", "evaluate"])] == [
        "evaluate-vit-b",
        "evaluate-vit-b-warm",
        "evaluate-nano",
    ]
    assert tuple(case.name for case in find_cases(["all"])) == case_names()
    quick = {case.name for case in find_cases(["cpu"])}
    assert {"train-vit-b", "modules-1000", "selector-fit"} <= quick < set(case_names())
    assert "selector-fit" not in {case.name for case in find_cases(["gpu"])}


@pytest.mark.parametrize("name", ["fast", "serv"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"case '{name}' is unknown"):
        find_cases([name])


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="'ingest' is registered already"):
        register_case(get_case("ingest"))
    with pytest.raises(ValueError, match="'cpu' is registered already"):
        register_case(Case("cpu", "", "", lambda setup: Arms(int, int)))


def test_airspeed_velocity_tracks_what_each_case_costs(
    load_file: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    settings = json.loads(re.sub(r"^\s*//.*$", "", (root / "asv.conf.json").read_text(), flags=re.MULTILINE))
    cost = load_file(root / settings["benchmark_dir"] / "cases.py").Cost()
    assert list(cost.params) == [case.name for case in find_cases(["cpu"])]
    arms = Arms(lambda: Spent(600.0), lambda: Spent(200.0))
    monkeypatch.setitem(cases._CASES, "heavy", Case("heavy", "", "", lambda setup: arms, repeats=1, warm_ups=0))
    assert cost.track_cost("heavy") == pytest.approx(1 / 3)


def test_the_machine_is_named() -> None:
    facts = machine_facts()
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["cpu"]
    assert json.loads(json.dumps(facts)) == facts
