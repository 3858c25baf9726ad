"""The gates of a registered version: scores from the step files, or scored again where those do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from samcl_core.config import Params
from samcl_core.errors import SamclError
from samcl_core.evaluation.gates import Gate, Score, Scores, judge
from samcl_core.evaluation.rmatrix import SELECTOR_ACCURACY, read_metadata, read_r_matrix
from samcl_core.stages.places import BASE, Places
from tasks.registry import BankVersion, load_registered
from tasks.tracking import test_digests

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["gates_of", "scores_of"]

_AGAIN = "samcl stream brings data, banks and scores up to date; then: samcl promote"


def gates_of(root: Path, params: Params, candidate: BankVersion, champion: BankVersion | None) -> tuple[Gate, ...]:
    """Judge a version against the champion, or against plain SAM where there is no champion. Never raises for scores
    that are missing: the gates that need them fail and say why.
    """
    new = [name for name in candidate.domains if champion is None or _is_new(name, candidate, champion)]
    found = scores_of(root, params, candidate, "the candidate")
    return judge(
        found,
        None if champion is None else scores_of(root, params, champion, "the champion", like=found),
        _zero_shot(root, candidate.domains),
        new=new,
        natural=params.names("natural"),
        **params.promotion.model_dump(),
    )


def _is_new(domain: str, candidate: BankVersion, champion: BankVersion) -> bool:
    """The champion does not know the domain, or knows it from other training data."""
    known = champion.data.get(domain)
    return known is None or known != candidate.data.get(domain)


def scores_of(root: Path, params: Params, version: BankVersion, who: str, *, like: Scores | None = None) -> Scores:
    """What a version scored: from the step file of its bank, else scored now on the present test data.

    Args:
        root: the workspace.
        params: its settings.
        version: of the registry.
        who: how reasons name it.
        like: scores it will be compared with. A step file that was measured on other test data is not used.
    """
    try:
        stored = _stored(root, params, version, who)
        if stored is not None and (like is None or _is_alike(stored, like)):
            return stored
        return _scored_now(root, params, version, who)
    except (SamclError, OSError, KeyError) as exc:
        message = exc.message if isinstance(exc, SamclError) else f"{type(exc).__name__}: {exc}"
        hint = exc.hint if isinstance(exc, SamclError) and exc.hint else _AGAIN
        reason = f"{who} (version {version.version}) has no scores on the present test data: {message}; next: {hint}"
        return Scores(who, problem=" ".join(reason.split()))


def _stored(root: Path, params: Params, version: BankVersion, who: str) -> Scores | None:
    """From the step whose file says that it holds the scores of exactly this bank."""
    places = Places(root)
    for number, step in enumerate((BASE, *params.steps())):
        path = places.scores(step)
        if path.is_file() and read_metadata(path).get("bank") == version.digest:
            return _as_scores(read_r_matrix(path), test_digests(path), number, version, who)
    return None


def _scored_now(root: Path, params: Params, version: BankVersion, who: str) -> Scores:
    from samcl_core.stages.rescore import rescore

    frame, digests = rescore(root, params, load_registered(root, version.version))
    return _as_scores(frame, digests, len(version.domains), version, who)


def _as_scores(frame: DataFrame, digests: Mapping[str, str], step: int, version: BankVersion, who: str) -> Scores:
    learnt = _row(frame, digests, step, "iou", "learn")
    # A domain of the bank without a number must be missed, not overlooked.
    every = {name: learnt.get(name, Score(None, None)) for name in version.domains}
    natural = _row(frame, digests, step, "iou", "natural")
    return Scores(who, every, natural, _row(frame, digests, step, SELECTOR_ACCURACY, "learn"))


def _row(frame: DataFrame, digests: Mapping[str, str], step: int, metric: str, role: str) -> dict[str, Score]:
    rows = frame[(frame["step"] == step) & (frame["metric"] == metric) & (frame["role"] == role)]
    pairs = zip(rows["domain"], rows["value"], strict=True)
    return {str(name): Score(float(value), digests.get(str(name))) for name, value in pairs}


def _is_alike(stored: Scores, like: Scores) -> bool:
    """Whether every domain that both have to show was measured on the same data."""
    pairs = [(stored.learnt, like.learnt), (stored.natural, like.natural)]
    is_same = all(ours.digest == theirs[name].digest for mine, theirs in pairs for name, ours in _shared(mine, theirs))
    return is_same and set(stored.natural) >= set(like.natural)


def _shared(mine: Mapping[str, Score], theirs: Mapping[str, Score]) -> list[tuple[str, Score]]:
    return [(name, score) for name, score in mine.items() if name in theirs]


def _zero_shot(root: Path, domains: tuple[str, ...]) -> Scores:
    """Row 0: of natural images from the base step, of each learnt domain from its own step."""
    places, empty = Places(root), Scores("plain SAM")
    try:
        natural = _zero_row(places.scores(BASE), "natural") if places.scores(BASE).is_file() else {}
        learnt: dict[str, Score] = {}
        for name in domains:
            if places.scores(name).is_file():
                learnt |= _zero_row(places.scores(name), "learn")
    except SamclError as exc:
        return replace(empty, problem=f"row 0 cannot be read: {exc.message}; next: {exc.hint or _AGAIN}")
    return replace(empty, natural=natural, learnt=learnt)


def _zero_row(path: Path, role: str) -> dict[str, Score]:
    return _row(read_r_matrix(path), test_digests(path), 0, "iou", role)
