"""Decisions inside real flow runs: their states, their page, and that nothing is decided twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import flow

from flows.promotion import NOT_PROMOTED, bank_promotion, concluded, settle
from samcl_core.config import Params
from tasks.ledger import read_ledger
from tasks.promotion import rollback
from tasks.registry import register_bank
from tasks.steps import watching
from tasks.tracking import RegistryUnavailable

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("server")]


def _case() -> ModuleType:
    path = Path(__file__).parents[1] / "promotion_case.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASE = _case()


@pytest.fixture
def workspace(tmp_path: Path) -> tuple[Path, Params]:
    """Both banks are registered; a person made the first one champion."""
    root = tmp_path / "W"
    params = CASE.fill(root)
    for step in ("Polyps", "Shadows"):
        register_bank(root, params, step)
    bank_promotion(root, "1", actor="me@here")
    return root, params


class Told:
    """A watcher that writes down what began."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def started(self, stage: str) -> None:
        self.begun.append(stage)

    def progress(self, stage: str, what: str, done: int, total: int) -> None: ...

    def ended(self, stage: str, outcome: str) -> None: ...


@flow(name="arrival-of-a-test", validate_parameters=False)
def arrival(root: Path, registered: dict[str, Any]) -> Any:
    decision = settle(root, "Shadows", registered)
    return concluded(decision, {"promotion": decision})


def pages(version: str) -> list[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return [str(artifact.data) for artifact in found if artifact.key == f"promotion-version-{version}"]


def test_an_arrival_decides_once_and_again_when_something_changed(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    registered = register_bank(root, params, "Shadows").values()
    told = Told()
    with watching(told):
        state = arrival(root, registered, return_state=True)
    decision = state.result()
    assert (state.name, decision["promoted"], decision["champion"]) == ("Completed", True, "1")
    assert decision["actor"].startswith("flow run ")
    assert "markdown" not in decision
    assert told.begun == ["decide@Shadows"]
    assert "promoted to champion" in pages("2")[0]

    arrival(root, registered)
    with watching(told):
        again = arrival(root, registered)
    assert told.begun == ["decide@Shadows"], "a remembered answer costs nothing"
    assert (again["promoted"], again["is_new"]) == (True, False)

    rollback(root, reason="bad masks", actor="me@here")
    state = arrival(root, registered, return_state=True)
    assert (state.name, state.is_completed(), state.result()["promoted"]) == (NOT_PROMOTED, True, False)
    assert "failed: rolled_back" in str(state.message)
    assert [entry.action for entry in read_ledger(root).entries] == ["promote", "promote", "rollback", "refuse"]

    state = bank_promotion(root, "2", actor="me@here", reason="the masks are fine", return_state=True)
    assert (state.name, state.result()["promoted"]) == ("Completed", True)


def test_without_a_registry_nothing_is_promoted_and_it_is_asked_again(
    workspace: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = workspace
    registered = register_bank(root, params, "Shadows").values()

    def away(*_: Any, **__: Any) -> None:
        raise RegistryUnavailable("MLflow at http://mlflow: no route to host")

    with monkeypatch.context() as patch:
        patch.setattr("flows.promotion.decide", away)
        state = arrival(root, registered, return_state=True)
    assert state.name == NOT_PROMOTED
    assert "no route to host" in state.result()["gates"][0]["reason"]
    assert arrival(root, registered)["promoted"]
