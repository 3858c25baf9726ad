"""Each gate passes and fails by hand-made numbers, and fails whenever a number is missing or cannot be compared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from samcl_core.evaluation.gates import Gate, Score, Scores, judge

LIMITS: dict[str, Any] = {
    "max_drop": 0.01,
    "max_natural_drop": 0.005,
    "min_selector_accuracy": 0.9,
    "require_better_than_zero_shot": True,
}
NAMES = ("max_drop", "max_natural_drop", "min_selector_accuracy", "better_than_zero_shot")


def scores(who: str, learnt: dict[str, Any], natural: dict[str, Any] | None = None, selector: float = 0.95) -> Scores:
    """Scores on the test data ``data of <domain>``; a pair is a value with another digest."""

    def made(values: dict[str, Any]) -> dict[str, Score]:
        pairs = {name: v if isinstance(v, tuple) else (v, f"data of {name}") for name, v in values.items()}
        return {name: Score(*pair) for name, pair in pairs.items()}

    return Scores(who, made(learnt), made(natural or {}), {name: Score(selector, "any") for name in learnt})


CANDIDATE = scores("the candidate", {"A": 0.80, "B": 0.70, "C": 0.60}, {"N": 0.70})
CHAMPION = scores("the champion", {"A": 0.805, "B": 0.60}, {"N": 0.70})
PLAIN = scores("plain SAM", {"A": 0.3, "B": 0.3, "C": 0.5}, {"N": 0.704})


def gates(
    candidate: Scores = CANDIDATE,
    champion: Scores | None = CHAMPION,
    plain: Scores = PLAIN,
    new: tuple[str, ...] = ("C",),
    natural: tuple[str, ...] = ("N",),
    **limits: Any,
) -> dict[str, Gate]:
    found = judge(candidate, champion, plain, new=new, natural=natural, **{**LIMITS, **limits})
    assert tuple(gate.name for gate in found) == NAMES
    return {gate.name: gate for gate in found}


def failed(found: dict[str, Gate]) -> list[str]:
    return [name for name, gate in found.items() if not gate.passed]


def test_a_better_bank_passes_and_says_how_close_it_was() -> None:
    found = gates()
    assert failed(found) == []
    assert found["max_drop"].found == pytest.approx(0.005)
    assert str(found["max_drop"]) == "passed: worst is A 0.8000, the champion 0.8050 (-0.0050, allowed -0.01)"
    assert found["better_than_zero_shot"].reason == "C 0.6000, zero-shot 0.5000 (+0.1000)"
    assert found["min_selector_accuracy"].found == pytest.approx(0.95)
    assert found["max_drop"].values()["expected"] == "drop <= 0.01"


def test_each_domain_that_lost_too_much_is_named() -> None:
    found = gates(candidate=scores("the candidate", {"A": 0.7, "B": 0.5, "C": 0.6}, {"N": 0.7}))
    assert failed(found) == ["max_drop"]
    assert "A 0.7000, the champion 0.8050 (-0.1050" in found["max_drop"].reason
    assert "B 0.5000" in found["max_drop"].reason
    assert found["max_drop"].found == pytest.approx(0.105)


def test_a_drop_of_exactly_the_limit_passes() -> None:
    ours, theirs = scores("the candidate", {"A": 0.79}, {"N": 0.7}), scores("the champion", {"A": 0.80}, {"N": 0.7})
    assert 0.80 - 0.79 > 0.01, "binary noise is what this is about"
    assert failed(gates(ours, theirs, new=())) == []
    assert failed(gates(ours, theirs, new=(), max_drop=0.0099)) == ["max_drop"]


def test_natural_images_must_be_kept() -> None:
    found = gates(candidate=scores("the candidate", {"A": 0.9, "B": 0.9, "C": 0.9}, {"N": 0.69}))
    assert failed(found) == ["max_natural_drop"]
    assert "N 0.6900, the champion 0.7000" in found["max_natural_drop"].reason


def test_without_natural_images_there_is_nothing_to_keep_and_it_is_said() -> None:
    ours, theirs = scores("the candidate", {"A": 0.9}), scores("the champion", {"A": 0.8})
    found = gates(ours, theirs, new=(), natural=())
    assert failed(found) == []
    assert "no natural images are declared" in found["max_natural_drop"].reason
    assert failed(gates(ours, theirs, new=(), natural=("N",))) == ["max_natural_drop"]


def test_the_champions_natural_images_are_not_forgotten_when_they_are_not_declared_any_more() -> None:
    found = gates(candidate=scores("the candidate", {"A": 0.9, "B": 0.9, "C": 0.9}), natural=())
    assert failed(found) == ["max_natural_drop"]
    assert "no score of the candidate on N" in found["max_natural_drop"].reason


def test_the_selector_must_find_the_domains() -> None:
    found = gates(candidate=scores("the candidate", {"A": 0.9, "B": 0.9, "C": 0.9}, {"N": 0.7}, selector=0.89))
    assert failed(found) == ["min_selector_accuracy"]
    assert "mean 0.8900 over 3 domain(s)" in found["min_selector_accuracy"].reason


@pytest.mark.parametrize("value", [0.5, 0.4])
def test_a_new_domain_must_be_better_than_zero_shot(value: float) -> None:
    worse = scores("the candidate", {"A": 0.9, "B": 0.9, "C": value}, {"N": 0.7})
    assert failed(gates(candidate=worse)) == ["better_than_zero_shot"]
    found = gates(candidate=worse, require_better_than_zero_shot=False)
    assert failed(found) == []
    assert found["better_than_zero_shot"].expected == "not required"


def test_without_a_champion_plain_sam_stands_in_its_place() -> None:
    first = scores("the candidate", {"A": 0.4}, {"N": 0.7})
    found = gates(first, None, new=("A",))
    assert failed(found) == []
    assert "plain SAM 0.3000" in found["max_drop"].reason
    worse = scores("the candidate", {"A": 0.2}, {"N": 0.6})
    assert failed(gates(worse, None, new=("A",))) == ["max_drop", "max_natural_drop", "better_than_zero_shot"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_number_that_is_none_fails_every_gate_that_needs_it(value: float | None) -> None:
    broken = scores("the candidate", {"A": value, "B": 0.9, "C": value}, {"N": value})
    found = gates(candidate=broken)
    assert failed(found) == ["max_drop", "max_natural_drop", "better_than_zero_shot"]
    assert "no score of the candidate on A" in found["max_drop"].reason
    assert found["max_drop"].found is None
    theirs = scores("the champion", {"A": value, "B": 0.6}, {"N": 0.7})
    assert "no score of the champion on A" in gates(champion=theirs)["max_drop"].reason
    assert failed(gates(plain=scores("plain SAM", {"C": value}, {"N": 0.7}))) == ["better_than_zero_shot"]
    selector = {**CANDIDATE.selector, "B": Score(value, "any")}
    found = gates(candidate=Scores("the candidate", CANDIDATE.learnt, CANDIDATE.natural, selector))
    assert failed(found) == ["min_selector_accuracy"]
    assert found["min_selector_accuracy"].reason == "no selector accuracy of B"


def test_a_domain_that_the_candidate_lost_fails() -> None:
    found = gates(candidate=scores("the candidate", {"B": 0.9, "C": 0.9}, {"N": 0.7}))
    assert failed(found) == ["max_drop"]
    assert "no score of the candidate on A" in found["max_drop"].reason


@pytest.mark.parametrize("digest", ["other data", None])
def test_scores_on_different_test_data_are_not_compared(digest: str | None) -> None:
    theirs = scores("the champion", {"A": (0.1, digest), "B": 0.6}, {"N": (0.1, digest)})
    found = gates(champion=theirs)
    assert failed(found) == ["max_drop", "max_natural_drop"]
    assert (
        "A was scored on different test data: the candidate on data of A and the champion on"
        in found["max_drop"].reason
    )
    assert "next: samcl stream" in found["max_drop"].reason
    plain = scores("plain SAM", {"C": (0.1, digest)}, {"N": 0.7})
    assert failed(gates(plain=plain)) == ["better_than_zero_shot"]


def test_two_unknown_digests_are_not_equal() -> None:
    ours, theirs = scores("the candidate", {"A": (0.9, None)}), scores("the champion", {"A": (0.8, None)})
    assert failed(gates(ours, theirs, new=(), natural=())) == ["max_drop"]


def test_no_scores_at_all_fail_with_their_problem() -> None:
    found = gates(candidate=Scores("the candidate", problem="the file is gone"))
    assert failed(found) == list(NAMES)
    assert {gate.reason for gate in found.values()} == {"the file is gone"}
    found = gates(champion=Scores("the champion", problem="another backbone"))
    assert failed(found) == ["max_drop", "max_natural_drop"]


def test_a_bank_without_modules_passes_nothing_by_being_empty() -> None:
    assert failed(gates(Scores("the candidate", natural={"N": Score(0.9, "data of N")}), None, new=())) == [
        "max_drop",
        "min_selector_accuracy",
    ]
