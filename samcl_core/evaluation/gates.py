"""Whether a bank may become champion: pure arithmetic on scores. Whatever is missing or cannot be compared fails."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Gate", "Score", "Scores", "judge"]

DROP = "max_drop"
NATURAL = "max_natural_drop"
SELECTOR = "min_selector_accuracy"
ZERO_SHOT = "better_than_zero_shot"
_NOISE = 1e-9
"""0.80 - 0.79 is a little more than 0.01 in binary; a drop this close to the limit is the limit."""


@dataclass(frozen=True)
class Score:
    """One number with the data it was measured on.

    Attributes:
        value: 0..1; ``None`` or NaN when there is none.
        digest: of the test data; ``None`` when unknown.
    """

    value: float | None
    digest: str | None


@dataclass(frozen=True)
class Scores:
    """What one bank scored, each a mapping from domain to score.

    Attributes:
        who: how reasons name it, ``the champion`` for instance.
        learnt: IoU of the domains with a module.
        natural: IoU on natural images.
        selector: share of right answers of the selector, of the domains with a module.
        problem: why there are no scores; empty when there are.
    """

    who: str
    learnt: Mapping[str, Score] = field(default_factory=dict)
    natural: Mapping[str, Score] = field(default_factory=dict)
    selector: Mapping[str, Score] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Gate:
    """The outcome of one condition.

    Attributes:
        name: of the condition; the option of ``promotion`` where there is one.
        passed: whether it holds.
        found: the number that decided: the largest drop, the accuracy, the smallest gain; ``None`` without one.
        expected: the condition, for people.
        reason: why it passed or failed, with the domains and numbers.
    """

    name: str
    passed: bool
    found: float | None
    expected: str
    reason: str

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'failed'}: {self.reason}"

    def values(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dict(vars(self))


def judge(
    candidate: Scores,
    champion: Scores | None,
    zero_shot: Scores,
    *,
    new: Sequence[str],
    natural: Collection[str],
    max_drop: float,
    max_natural_drop: float,
    min_selector_accuracy: float,
    require_better_than_zero_shot: bool,
) -> tuple[Gate, ...]:
    """All gates, in a fixed order. A bank is promoted when every one passed.

    Args:
        candidate: the bank that wants to become champion.
        champion: the present one; ``None`` when there is none, then plain SAM stands in its place.
        zero_shot: plain SAM (row 0) on natural images and on the new domains.
        new: domains that the champion does not know, or knows from other training data.
        natural: domains that are declared as natural images.
        max_drop: how much IoU a learnt domain of the champion may lose.
        max_natural_drop: how much IoU natural images may lose.
        min_selector_accuracy: least mean over the learnt domains of the share of right answers.
        require_better_than_zero_shot: whether each new domain must score better than plain SAM.
    """
    reference = zero_shot if champion is None else champion
    learnt = candidate.learnt if champion is None else champion.learnt
    everyday = sorted({*natural, *candidate.natural, *(champion.natural if champion else ())})
    return (
        _drop(DROP, list(learnt), candidate, candidate.learnt, reference, reference.learnt, max_drop),
        _natural(everyday, candidate, reference, max_natural_drop),
        _selector(candidate, min_selector_accuracy),
        _zero_shot(new, candidate, zero_shot, is_required=require_better_than_zero_shot),
    )


def _drop(
    name: str,
    domains: Sequence[str],
    candidate: Scores,
    found: Mapping[str, Score],
    reference: Scores,
    before: Mapping[str, Score],
    limit: float,
) -> Gate:
    expected = f"drop <= {limit:g}"
    if problem := candidate.problem or reference.problem:
        return Gate(name, False, None, expected, problem)
    if not domains:
        return Gate(name, False, None, expected, f"{reference.who} has no score to compare with")
    if problems := _uncomparable(domains, candidate, found, reference, before):
        return Gate(name, False, None, expected, problems)
    drops = {domain: _value(before, domain) - _value(found, domain) for domain in domains}
    worst = max(drops, key=drops.__getitem__)
    too_much = [domain for domain in domains if drops[domain] > limit + _NOISE]
    told = [
        f"{domain} {_value(found, domain):.4f}, {reference.who} {_value(before, domain):.4f}"
        f" ({0.0 - drops[domain]:+.4f}, allowed -{limit:g})"
        for domain in too_much or [worst]
    ]
    return Gate(name, not too_much, drops[worst], expected, ("" if too_much else "worst is ") + "; ".join(told))


def _natural(domains: Sequence[str], candidate: Scores, reference: Scores, limit: float) -> Gate:
    if not domains and not candidate.problem and not reference.problem:
        reason = "no natural images are declared, so nothing is known of them (samcl arrive FOLDER --role natural)"
        return Gate(NATURAL, True, None, f"drop <= {limit:g}", reason)
    return _drop(NATURAL, domains, candidate, candidate.natural, reference, reference.natural, limit)


def _selector(candidate: Scores, least: float) -> Gate:
    expected = f"accuracy >= {least:g}"
    if candidate.problem:
        return Gate(SELECTOR, False, None, expected, candidate.problem)
    missing = [domain for domain in candidate.learnt if not _is_number(candidate.selector.get(domain))]
    if missing or not candidate.learnt:
        reason = f"no selector accuracy of {', '.join(missing) or 'any domain'}"
        return Gate(SELECTOR, False, None, expected, reason)
    shares = {domain: _value(candidate.selector, domain) for domain in candidate.learnt}
    mean = math.fsum(shares.values()) / len(shares)
    worst = min(shares, key=shares.__getitem__)
    reason = f"mean {mean:.4f} over {len(shares)} domain(s), worst is {worst} with {shares[worst]:.4f}"
    return Gate(SELECTOR, mean >= least - _NOISE, mean, expected, reason)


def _zero_shot(new: Sequence[str], candidate: Scores, zero_shot: Scores, *, is_required: bool) -> Gate:
    if not is_required:
        return Gate(ZERO_SHOT, True, None, "not required", "require_better_than_zero_shot is false")
    expected = "gain > 0"
    if problem := candidate.problem or zero_shot.problem:
        return Gate(ZERO_SHOT, False, None, expected, problem)
    if not new:
        return Gate(ZERO_SHOT, True, None, expected, "no domain is new")
    if problems := _uncomparable(new, candidate, candidate.learnt, zero_shot, zero_shot.learnt):
        return Gate(ZERO_SHOT, False, None, expected, problems)
    gains = {domain: _value(candidate.learnt, domain) - _value(zero_shot.learnt, domain) for domain in new}
    worst = min(gains, key=gains.__getitem__)
    no_better = [domain for domain in new if not gains[domain] > 0]
    told = [
        f"{domain} {_value(candidate.learnt, domain):.4f}, zero-shot {_value(zero_shot.learnt, domain):.4f}"
        f" ({gains[domain]:+.4f})"
        for domain in no_better or [worst]
    ]
    return Gate(ZERO_SHOT, not no_better, gains[worst], expected, "; ".join(told))


def _uncomparable(
    domains: Iterable[str],
    candidate: Scores,
    found: Mapping[str, Score],
    reference: Scores,
    before: Mapping[str, Score],
) -> str:
    """Everything that keeps two banks from being compared; empty when nothing does."""
    problems = []
    for domain in domains:
        sides = ((candidate, found.get(domain)), (reference, before.get(domain)))
        if missing := [scores.who for scores, score in sides if not _is_number(score)]:
            problems.append(f"no score of {' and '.join(missing)} on {domain}")
            continue
        digests = [score.digest for _, score in sides if score is not None]
        if None in digests or digests[0] != digests[1]:
            shown = " and ".join(f"{scores.who} on {_short(score)}" for scores, score in sides)
            problems.append(f"{domain} was scored on different test data: {shown}")
    return "; ".join(problems) + ("; next: samcl stream scores again what changed" if problems else "")


def _is_number(score: Score | None) -> bool:
    return score is not None and score.value is not None and math.isfinite(score.value)


def _value(scores: Mapping[str, Score], domain: str) -> float:
    value = scores[domain].value
    assert value is not None
    return value


def _short(score: Score | None) -> str:
    return "unknown data" if score is None or not score.digest else score.digest[:12]
