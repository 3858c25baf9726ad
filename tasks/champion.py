"""The champion, scored again: does it still do on the present test data what is on record for it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from samcl_core.config import Params
from samcl_core.evaluation.rmatrix import read_metadata, read_r_matrix
from samcl_core.progress import Progress
from samcl_core.stages.places import BASE, Places
from tasks.limits import held
from tasks.registry import CHAMPION, aliases, load_registered, read_version
from tasks.steps import told
from tasks.tracking import open_tracker, test_digests
from tasks.workspace import Workspace

__all__ = ["Again", "ChampionScores", "champion_scores"]


@dataclass(frozen=True)
class Again:
    """One number of the champion.

    Attributes:
        domain: a learnt or natural one.
        metric: ``iou``, ``f1`` ...
        now: measured just now.
        before: on record for the same bank and the same test data; ``None`` when there is none.
    """

    domain: str
    metric: str
    now: float
    before: float | None

    @property
    def change(self) -> float | None:
        """``now - before``."""
        return None if self.before is None else self.now - self.before


@dataclass(frozen=True)
class ChampionScores:
    """What the champion scores now.

    Attributes:
        version: of the registry.
        bank: content digest of its bank.
        numbers: one a domain and metric.
    """

    version: str
    bank: str
    numbers: tuple[Again, ...]


@task(name="score-champion", task_run_name="score the champion", cache_policy=NO_CACHE)
def champion_scores(root: Path) -> ChampionScores | None:
    """Score the registered champion on the present test data, one machine's GPU at a time; ``None`` without one.

    Raises:
        IntegrityError: the files in the registry are not the bank that was registered.
        RegistryUnavailable: MLflow cannot be reached.
        DataError: test data is missing, or is not what was embedded.
    """
    params = Workspace(root).params()
    with open_tracker(root) as tracker:
        if CHAMPION not in aliases(tracker):
            return None
        version = read_version(tracker, f"@{CHAMPION}")
    with held("gpu"), told(f"score@version {version.version}") as tell:
        found, digests = _scored(root, params, load_registered(root, version.version), tell.progress)
    before = _on_record(Places(root), params, version.digest, digests)
    rows = zip(found["domain"], found["metric"], found["value"], strict=True)
    numbers = [Again(str(name), str(metric), float(value), before.get((name, metric))) for name, metric, value in rows]
    return ChampionScores(version.version, version.digest, tuple(numbers))


def _scored(root: Path, params: Params, bank: Path, progress: Progress) -> tuple[Any, dict[str, str]]:
    from samcl_core.stages.rescore import rescore

    return rescore(root, params, bank, progress)


def _on_record(places: Places, params: Params, bank: str, digests: dict[str, str]) -> dict[tuple[str, str], float]:
    """Domain and metric to the value in the step file of exactly this bank, where the test data is the same."""
    for number, step in enumerate((BASE, *params.steps())):
        path = places.scores(step)
        if not path.is_file() or read_metadata(path).get("bank") != bank:
            continue
        frame, measured = read_r_matrix(path), test_digests(path)
        rows = frame[frame["step"] == number]
        cells = zip(rows["domain"], rows["metric"], rows["value"], strict=True)
        return {
            (str(name), str(metric)): float(value)
            for name, metric, value in cells
            if name in digests and measured.get(str(name)) == digests[name]
        }
    return {}
