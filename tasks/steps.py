"""Prefect tasks: thin wrappers around DVC stages, edits of the workspace and MLflow. DVC decides what is stale."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from samcl_core.errors import UsageError
from samcl_core.files import digest_json
from tasks import dvc
from tasks.devices import slot_of
from tasks.limits import held
from tasks.tracking import RegistryUnavailable, tracking_uri
from tasks.workspace import Workspace

__all__ = [
    "Told",
    "Watcher",
    "append_to_stream",
    "artifact_key",
    "decide",
    "decided",
    "declare",
    "receive",
    "register",
    "registration",
    "require_workspace",
    "run_stage",
    "tell_outcomes",
    "told",
    "track_training",
    "watching",
]

_ARTIFACT_EVERY_S = 2.0


class Watcher(Protocol):
    """Who is told what happens, beside Prefect: the terminal."""

    def started(self, stage: str) -> None:
        """A stage is taken up."""
        ...

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        """How far it is; ``total`` 0 when unknown."""
        ...

    def ended(self, stage: str, outcome: str) -> None:
        """It is over: ``ran``, ``cached``, ``skipped`` or ``failed``."""
        ...


_WATCHER: ContextVar[Watcher | None] = ContextVar("samcl_watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` about every stage that flows inside the block run."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts if part)


def _is_transient(task: Any, run: Any, state: Any) -> bool:
    try:
        state.result(raise_on_failure=True)
    except RegistryUnavailable:
        return True
    except Exception:
        return False
    return False


@task(name="receive", task_run_name="receive {domain}", cache_policy=NO_CACHE)
def receive(root: Path, source: Path, domain: str) -> bool:
    """Copy arriving data into the workspace and put it under DVC; True when it is new or changed."""
    with told(f"receive@{domain}") as tell:
        changed = dvc.add_raw(root, source, domain)
        tell("ran" if changed else "skipped")
    return changed


@task(name="declare", task_run_name="declare {domain}", cache_policy=NO_CACHE)
def declare(
    root: Path, domain: str, role: str, format: str, label: str | None, options: Mapping[str, Any] | None = None
) -> bool:
    """Write a domain into ``params.yaml`` under the limit ``params``; True when it changed."""
    with held("params"):
        return Workspace(root).declare(domain, role, format, label, options)


@task(name="append-to-stream", task_run_name="append {domains}", cache_policy=NO_CACHE)
def append_to_stream(root: Path, domains: Sequence[str]) -> str:
    """Make learnt domains the next steps of the stream under the limit ``params``; returns the step before them."""
    with held("params"):
        return Workspace(root).append_to_stream(*domains)


@task(name="stage", task_run_name="{target}", cache_policy=NO_CACHE)
def run_stage(root: Path, target: str) -> dvc.Outcome:
    """Bring one DVC stage up to date; its progress goes to an artifact and to whoever watches.

    Raises:
        StageFailed: the stage's own error first.
    """
    reporter = _Reporter(target)
    with told(target) as tell, slot_of(target, Workspace(root).params()) as slot:
        environment = {**_run_environment(), **slot.environment}
        outcome = dvc.repro(root, target, on_progress=reporter, env=environment, keep_open=slot.handles)
        tell(outcome)
    reporter.finish(outcome)
    return outcome


@task(
    name="log-training",
    task_run_name="log training {domain}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 5, 10],
    retry_condition_fn=_is_transient,
)
def track_training(root: Path, domain: str, module: str) -> str:
    """The MLflow run of a trained module (by its digest); asked for once a module and MLflow address."""
    from tasks.tracking import log_training

    note = _note(root, "training", module)
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    run_id = log_training(root, Workspace(root).params(), domain, flow_run_id=_flow_run_id())
    _write_note(note, run_id)
    return run_id


@task(
    name="register",
    task_run_name="register {step}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 5, 10],
    retry_condition_fn=_is_transient,
)
def register(root: Path, step: str, commit: str | None = None) -> dict[str, Any]:
    """Put the bank of a step, made by what ``commit`` holds, into the registry; the same bank again is found."""
    from tasks.registry import register_bank

    with told(f"register@{step}") as tell:
        registered = register_bank(root, Workspace(root).params(), step, flow_run_id=_flow_run_id(), commit=commit)
        tell("ran" if registered.created else "skipped")
    values = {
        "name": registered.name,
        "version": registered.version,
        "digest": registered.digest,
        "run_id": registered.run_id,
        "created": registered.created,
    }
    _write_note(_bank_note(root, step), json.dumps(values | {"created": False}))
    return values


def registration(root: Path, step: str) -> dict[str, Any] | None:
    """What ``register`` answered for exactly this bank and these scores in the present registry; ``None`` if never."""
    try:
        values: dict[str, Any] = json.loads(_bank_note(root, step).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values


@task(
    name="decide",
    task_run_name="decide on version {version}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 5, 10],
    retry_condition_fn=_is_transient,
)
def decide(root: Path, version: str, **how: Any) -> dict[str, Any]:
    """Judge a registered version and make it champion when it may be; ``how`` as ``tasks.promotion.decide``."""
    from tasks.promotion import decide as decide_on

    return decide_on(root, Workspace(root).params(), version, **how).values()


def decided(root: Path, step: str, registered: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The decision on a step's registered bank: as remembered when nothing changed that it depends on, else ``make``'s.

    It depends on bank, scores, settings, champion and registry. An answer that lacked a number (no registry, a champion
    that could not be scored) is not remembered: the next run may have it.
    """
    with contextlib.suppress(OSError, ValueError):
        values: dict[str, Any] = json.loads(_decision_note(root, step, registered).read_text(encoding="utf-8"))
        return values | {"is_new": False}
    with told(f"decide@{step}"):
        values = make()
    failed = [gate for gate in values["gates"] if not gate["passed"]]
    if all(gate["found"] is not None or gate["name"] == "rolled_back" for gate in failed):
        _write_note(_decision_note(root, step, registered), json.dumps(values))
    return values


def _decision_note(root: Path, step: str, registered: Mapping[str, Any]) -> Path:
    from tasks.ledger import read_ledger

    params = Workspace(root).params()
    champion = read_ledger(root).champion(str(registered["name"]))
    scores = dvc.lock_digest(root, f"evaluate@{step}", f"metrics/steps/{step}.parquet")
    made = None if champion is None else champion.digest
    basis = [registered["version"], registered["digest"], scores, made, params.promotion.model_dump()]
    return _note(root, "decision", digest_json([*basis, params.names("natural")])[:32])


def _bank_note(root: Path, step: str) -> Path:
    bank = dvc.lock_digest(root, f"bank@{step}", f"banks/{step}")
    scores = dvc.lock_digest(root, f"evaluate@{step}", f"metrics/steps/{step}.parquet")
    return _note(root, "bank", f"{step}-{bank}-{scores}")


def _note(root: Path, kind: str, digest: str) -> Path:
    """Where an answer of MLflow is remembered: per address, and per file for the workspace's own database."""
    uri = tracking_uri(root)
    database = Path(uri.removeprefix("sqlite:///"))
    made = database.stat().st_ino if uri.startswith("sqlite:///") and database.is_file() else 0
    address = digest_json([uri, os.environ.get("SAMCL_MODEL_NAME"), made])[:16]
    return root / ".samcl" / "registered" / address / f"{kind}-{digest}"


def _write_note(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _flow_run_id() -> str | None:
    run_id = flow_run.get_id()
    return None if run_id is None else str(run_id)


def _run_environment() -> Mapping[str, str]:
    """What a step may write into its own log; no result depends on it."""
    run_id = _flow_run_id()
    return {} if run_id is None else {"SAMCL_FLOW_RUN_ID": run_id}


class Told:
    """How one piece of work is doing, for whoever watches. Call it with the outcome, ``ran`` when never called.

    Attributes:
        outcome: ``ran``, ``cached``, ``skipped`` or ``failed``.
    """

    def __init__(self, stage: str, watcher: Watcher | None) -> None:
        self.outcome = "ran"
        self._stage = stage
        self._watcher = watcher

    def __call__(self, outcome: str) -> None:
        self.outcome = outcome

    def progress(self, what: str, done: int, total: int) -> None:
        """How far it is; ``total`` 0 when unknown."""
        if self._watcher is not None:
            self._watcher.progress(self._stage, what, done, total)


@contextmanager
def told(stage: str) -> Iterator[Told]:
    """Tell the watcher that the block takes up ``stage``, and how it ended."""
    watcher = _WATCHER.get()
    tell = Told(stage, watcher)
    if watcher is not None:
        watcher.started(stage)
    try:
        yield tell
    except BaseException:
        tell("failed")
        raise
    finally:
        if watcher is not None:
            watcher.ended(stage, tell.outcome)


def tell_outcomes(outcomes: Mapping[str, str]) -> None:
    """Tell the watcher how stages ended that ran in another process."""
    watcher = _WATCHER.get()
    if watcher is None:
        return
    for stage, outcome in outcomes.items():
        watcher.started(stage)
        watcher.ended(stage, outcome)


class _Reporter:
    """Progress of one stage as one Prefect artifact, written every 2 s at most. It may fail; the step goes on."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._watcher = _WATCHER.get()
        self._artifact: Any = None
        self._at = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._watcher is not None:
            self._watcher.progress(self._target, what, done, total)
        if total > 0 and time.monotonic() - self._at >= _ARTIFACT_EVERY_S:
            self._write(min(100.0, 100.0 * done / total), f"{self._target}: {what} {done}/{total}")

    def finish(self, outcome: str) -> None:
        if self._artifact is not None:
            self._write(100.0, f"{self._target}: {outcome}")

    def _write(self, percent: float, text: str) -> None:
        self._at = time.monotonic()
        with contextlib.suppress(Exception):
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, artifact_key("progress", self._target), text)
            else:
                update_progress_artifact(self._artifact, percent, text)


def require_workspace(root: Path | str) -> Workspace:
    """The workspace of a flow: settings checked as a whole, killed runs' steps ended, code digests up to date.

    Raises:
        UsageError: it is no workspace.
        ConfigError: ``params.yaml`` is wrong.
    """
    folder = Path(root).resolve()
    if not (folder / "params.yaml").is_file() or not (folder / "dvc.yaml").is_file():
        raise UsageError(f"{folder} is no workspace (no params.yaml with dvc.yaml)", hint=f"samcl init {folder}")
    if not (folder / ".dvc").is_dir():
        raise UsageError(f"{folder} has no DVC repository", hint=f"samcl init {folder}")
    workspace = Workspace(folder)
    workspace.params()
    dvc.end_leftovers(folder)
    workspace.refresh_code()
    return workspace
