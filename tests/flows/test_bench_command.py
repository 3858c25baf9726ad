"""``samcl bench``: which cases there are, what is printed, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Samcl = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.pipeline


def test_the_cases_are_listed_without_measuring(samcl: Samcl) -> None:
    code, answer, _ = samcl("bench", "--list")
    assert code == 0
    for name in ("train-vit-b", "modules-1000", "memory-vit-b", "reingest"):
        assert f"{name}  [" in answer
    code, answer, _ = samcl("bench", "evaluate", "--list", "--json")
    assert code == 0
    cases = {case["name"]: case for case in json.loads(answer)}
    assert set(cases) == {"evaluate-vit-b", "evaluate-vit-b-warm", "evaluate-nano"}
    assert cases["evaluate-vit-b"]["targets"] == {"cpu": 1.5, "cuda": 10.0}
    assert all(case["baseline"] and case["title"] for case in cases.values())


def test_a_table_as_markdown_and_the_numbers_in_a_file(samcl: Samcl, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    code, answer, _ = samcl(
        "bench", "selector-fit", "--size", 24, "--repeats", 1, "--markdown", "--out", out, "--dir", tmp_path
    )
    assert code == 0
    lines = answer.splitlines()
    assert lines[0] == "| case | baseline | ours | ratio | wanted |"
    assert lines[2].startswith("| selector-fit | ") and lines[2].endswith(" | ≥ 100 |")
    assert len(lines) == 3
    written = json.loads(out.read_text())
    assert written["machine"]["device"] == "cpu"
    (case,) = written["cases"]
    assert case["case"] == "selector-fit"
    assert case["size"] == 24
    assert len(case["baseline_runs"]) == len(case["ours_runs"]) == 1
    assert list(tmp_path.iterdir()) == [out], "what was made is gone"


def test_what_is_not_there_is_one_error(samcl: Samcl) -> None:
    code, _, problem = samcl("bench", "speedy")
    assert code == 2
    assert "case 'speedy' is unknown" in problem and "samcl bench --list" in problem
    code, _, problem = samcl("bench", "selector-fit", "--device", "abacus")
    assert code == 2
    assert "device is 'abacus'" in problem
