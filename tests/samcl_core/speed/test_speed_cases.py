"""Cases of speed: arms in turns, ratios of medians; and every case that ships does its work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from samcl_core.domains import Domain
from samcl_core.errors import UsageError
from samcl_core.progress import Progress
from samcl_core.speed import Arm, case_names, get_case, machine_facts, measure_case, register_case


class Sleepy:
    """Ours takes a third of the baseline."""

    name = "sleepy"
    title = "sleep"
    baseline = "sleep longer"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def arms(self, folder: Path, size: int | None, progress: Progress) -> tuple[Arm, Arm]:
        def arm(name: str, seconds: float) -> Arm:
            def run() -> None:
                self.calls.append(name)
                time.sleep(seconds)

            return run

        return arm("baseline", 0.09), arm("ours", 0.03)


def test_arms_run_in_turns_and_the_first_turn_does_not_count(tmp_path: Path) -> None:
    case = Sleepy()
    found = measure_case(case, tmp_path, repeats=2)
    assert case.calls == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]
    assert len(found.baseline_s) == len(found.ours_s) == 2
    assert 1.5 < found.ratio < 6
    values = json.loads(json.dumps(found.as_json()))
    assert values["ratio"] == pytest.approx(values["baseline_median_s"] / values["ours_median_s"])


@pytest.mark.parametrize("name", ["ingest", "reingest"])
def test_ingest_cases_make_a_whole_domain(tmp_path: Path, name: str) -> None:
    found = measure_case(get_case(name), tmp_path, size=5, repeats=1)
    assert found.ratio > 0
    manifest = Domain(tmp_path / "data/Pictures").manifest()
    assert manifest["split"].value_counts().to_dict() == {"train": 4, "test": 1}
    assert set(manifest["status"]) == {"ok"}


def test_names_are_checked() -> None:
    assert {"ingest", "reingest"} <= set(case_names())
    with pytest.raises(UsageError, match="case 'fast' is unknown"):
        get_case("fast")
    with pytest.raises(ValueError, match="registered already"):
        register_case(get_case("ingest"))
    assert machine_facts()["cores"] >= 1
