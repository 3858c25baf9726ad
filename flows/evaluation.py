"""The flow of the nightly evaluation: the champion is scored again, and what changed is shown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.states import Completed

from tasks.champion import Again, ChampionScores, champion_scores
from tasks.steps import require_workspace

__all__ = ["champion_evaluation"]

_TOLERANCE = 1e-3
"""Other hardware may round a score differently in the fourth digit."""


@flow(name="champion-evaluation", flow_run_name="evaluate the champion", validate_parameters=False)
def champion_evaluation(root: str | Path) -> dict[str, Any]:
    """Score the champion again on the present test data and compare with what is on record.

    The files of the bank are compared with their digests on the way. Nothing is promoted or changed.

    Returns:
        ``version`` and ``bank`` of the champion, ``scores`` (domain, metric, now, before, change) and ``changed``: the
        names of those that are not what they were. Without a champion all of them are empty.

    Raises:
        IntegrityError: the registered files are not the bank that was registered.
        RegistryUnavailable: MLflow cannot be reached.
    """
    workspace = require_workspace(root)
    found = champion_scores(workspace.root)
    if found is None:
        nothing: dict[str, Any] = {"version": None, "bank": None, "scores": [], "changed": []}
        return _named("No champion", "no bank was promoted yet", nothing)
    changed = [f"{one.domain} {one.metric}" for one in found.numbers if _has_changed(one)]
    _show(found)
    values = {"version": found.version, "bank": found.bank, "scores": [_row(one) for one in found.numbers]}
    result = values | {"changed": changed}
    return _named("Scores changed", ", ".join(changed), result) if changed else result


def _has_changed(one: Again) -> bool:
    if one.before is None or (math.isnan(one.now) and math.isnan(one.before)):
        return False
    return not abs(one.now - one.before) <= _TOLERANCE


def _row(one: Again) -> dict[str, Any]:
    return {"domain": one.domain, "metric": one.metric, "now": one.now, "before": one.before, "change": one.change}


def _show(found: ChampionScores) -> None:
    rows = [
        {key: value if isinstance(value, str) else _number(value) for key, value in _row(one).items()}
        for one in found.numbers
    ]
    create_table_artifact(rows, "champion-scores", f"version {found.version}, bank {found.bank}")


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _named(name: str, message: str, result: dict[str, Any]) -> dict[str, Any]:
    state: Any = Completed(name=name, message=message[:500], data=result)
    return state  # type: ignore[no-any-return]  # Prefect hands the state's data to the caller
