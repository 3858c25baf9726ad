"""The flow of one arriving domain: receive, check, learn, publish; a stream of domains shares these steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_step
from flows.promotion import concluded, settle
from samcl_core.errors import UsageError
from samcl_core.stages.places import BASE
from tasks import dvc
from tasks.limits import held
from tasks.names import check_name
from tasks.steps import (
    append_to_stream,
    declare,
    receive,
    register,
    registration,
    require_workspace,
    run_stage,
    track_training,
)
from tasks.versioning import commit_bank, commit_rest, push_data
from tasks.workspace import Workspace

__all__ = ["Arrival", "ArrivalResult", "check_arrivals", "domain_arrival", "keep", "learn", "publish", "take_in"]


@dataclass(frozen=True)
class Arrival:
    """One data set that arrives.

    Attributes:
        domain: its name in the workspace.
        source: the folder that holds it; ``None`` for one that is in ``data/raw`` already.
        role: ``learn``, ``natural`` (what plain SAM must keep) or ``unseen`` (evaluated only).
        format: name of its layout, ``auto`` to detect it.
        label: a text for people.
        options: what its files do not say (see ``SourceParams``).
    """

    domain: str
    source: str | None = None
    role: str = "learn"
    format: str = "auto"
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrivalResult:
    """What became of an arrival.

    Attributes:
        domain: its name.
        role: its role.
        outcomes: stage to ``ran``, ``cached`` or ``skipped``, in the order of the run.
        registered: name, version, digest, run_id and created of the bank, and under ``promotion`` whether it became
            champion and why; ``None`` when none was published.
        warnings: what could not be committed or copied to the DVC remote, each with the next command.
    """

    domain: str
    role: str
    outcomes: dict[str, str] = field(default_factory=dict)
    registered: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


class Progressing:
    """The stages of one flow run.

    As long as nothing ran, what one ``dvc status`` at the start found clean needs no process of its own. Later, a step
    of the stream that was brought up to date stays so until its own domain or a step before it changes.

    Attributes:
        workspace: where the stages run.
        outcomes: stage to what DVC did, in the order of the run.
        settled: ``base`` and the steps that this flow run brought up to date.
        warnings: what went wrong without failing the run.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.outcomes: dict[str, str] = {}
        self.settled: set[str] = set()
        self.warnings: list[str] = []
        self._stale: set[str] = set()
        self._is_untouched = True
        try:
            self._stale = set(dvc.status(workspace.root))
        except dvc.Busy:
            # Another command's step runs: each stage is asked for by itself, and waits where it has to.
            self._is_untouched = False

    @property
    def is_untouched(self) -> bool:
        """Nothing ran or changed so far."""
        return self._is_untouched

    def touch(self, domain: str | None = None) -> None:
        """Something changed: DVC is asked stage by stage from now on, and ``domain``'s step (or every one) again."""
        self._is_untouched = False
        if domain is None:
            self.settled.clear()
        else:
            self.settled.discard(domain)

    def is_clean(self, target: str) -> bool:
        """Whether the status at the start still holds and finds ``target`` up to date."""
        return self._is_untouched and target not in self._stale

    def run(self, target: str) -> dvc.Outcome:
        """Bring a stage up to date."""
        outcome: dvc.Outcome = "skipped" if self.is_clean(target) else run_stage(self.workspace.root, target)
        if outcome != "skipped":
            self._is_untouched = False
        self.outcomes[target] = outcome
        return outcome


def check_arrivals(workspace: Workspace, arrivals: Sequence[Arrival]) -> None:
    """Look at every source before anything is changed.

    Raises:
        UsageError: a name, role or source cannot be, or a name comes twice.
    """
    declared = workspace.params().domains
    seen: set[str] = set()
    for arrival in arrivals:
        check_name(arrival.domain)
        if arrival.domain in seen:
            raise UsageError(f"domain {arrival.domain!r} comes twice", hint="give each folder a name of its own")
        seen.add(arrival.domain)
        known = declared.get(arrival.domain)
        if known is not None and known.role != arrival.role:
            raise UsageError(
                f"domain {arrival.domain!r} is declared with role {known.role!r}, not {arrival.role!r}",
                hint=f"choose another name, or `samcl remove {arrival.domain}` first",
            )
        dvc.check_source(workspace.root, source_of(workspace, arrival), arrival.domain)


def source_of(workspace: Workspace, arrival: Arrival) -> Path:
    """The folder an arrival comes from."""
    if arrival.source is None:
        return workspace.places.raw(arrival.domain)
    return Path(arrival.source).expanduser().resolve()


def take_in(progress: Progressing, arrival: Arrival) -> None:
    """Receive, declare, ingest, points and embed: what every role needs."""
    workspace, domain = progress.workspace, arrival.domain
    changed = not _is_received(progress, arrival) and receive(workspace.root, source_of(workspace, arrival), domain)
    changed |= declare(workspace.root, domain, arrival.role, arrival.format, arrival.label, arrival.options)
    if changed:
        progress.touch(domain)
    for stage in ("ingest", "points", "embed"):
        changed |= progress.run(f"{stage}@{domain}") != "skipped"
    if changed:
        # The bank before the first step knows the natural and unseen domains, so every step follows them.
        progress.touch(domain if arrival.role == "learn" else None)


def _is_received(progress: Progressing, arrival: Arrival) -> bool:
    raw = progress.workspace.places.raw(arrival.domain)
    tracked = raw.with_name(f"{raw.name}.dvc")
    if not tracked.is_file() or not progress.is_clean(f"data/raw/{tracked.name}"):
        return False
    source = source_of(progress.workspace, arrival)
    return source == raw or dvc.same_tree(source, raw)


def learn(progress: Progressing, domain: str) -> None:
    """Train the module of a domain, one training a GPU at a time, and write its MLflow run."""
    target = f"train@{domain}"
    with nullcontext() if progress.is_clean(target) else held("gpu"):
        if progress.run(target) != "skipped":
            progress.touch(domain)
    curve = json.loads(progress.workspace.places.curve(domain).read_text(encoding="utf-8"))
    track_training(progress.workspace.root, domain, curve["module"])


def publish(progress: Progressing, domain: str | None, *, upto: str | None = None) -> dict[str, Any] | None:
    """One critical section: the bank of each step, its evaluation, the report and the registered version.

    Args:
        progress: the flow run's stages.
        domain: a learnt domain that joins the stream; ``None`` brings the present stream up to date.
        upto: last step to bring up to date; the whole stream when ``None``. Steps whose inputs did not change are
            skipped, so a changed early step carries through to the last.

    Returns:
        The registered version of the last of these steps, ``None`` for an empty stream.
    """
    workspace = progress.workspace
    with nullcontext() if _is_published(progress, domain) else held("bank"):
        if domain is not None and domain not in workspace.params().stream:
            append_to_stream(workspace.root, domain)
            progress.touch(domain)
        params = workspace.params()
        steps = params.steps()[: params.steps().index(upto) + 1 if upto else None]
        if not steps:
            return None
        _make_banks(progress, steps)
        if all(workspace.places.scores(step).is_file() for step in params.steps()):
            progress.run("report")
        commit, warnings = commit_bank(workspace.root, domain, steps[-1])
        progress.warnings += warnings
        registered = [registration(workspace.root, step) or register(workspace.root, step, commit) for step in steps]
        if steps == params.steps():
            registered[-1] = {**registered[-1], "promotion": settle(workspace.root, steps[-1], registered[-1])}
    if not progress.is_untouched or steps == params.steps():
        publish_step(workspace.root, params, steps[-1], registered[-1])
    return registered[-1]


def _is_published(progress: Progressing, domain: str | None) -> bool:
    steps = progress.workspace.params().steps()
    targets = [BASE, "report", *(f"{stage}@{step}" for step in steps for stage in ("bank", "evaluate"))]
    is_member = domain is None or domain in steps
    return is_member and all(map(progress.is_clean, targets))


def _make_banks(progress: Progressing, steps: Sequence[str]) -> None:
    has_moved = BASE not in progress.settled and progress.run(BASE) != "skipped"
    progress.settled.add(BASE)
    for step in steps:
        if step in progress.settled and not has_moved:
            continue
        for stage in ("bank", "evaluate"):
            has_moved |= progress.run(f"{stage}@{step}") != "skipped"
        progress.settled.add(step)


def keep(progress: Progressing, domain: str, registered: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Commit what is left, copy the data to the DVC remote; returns all warnings of this arrival."""
    root = progress.workspace.root
    warnings = [*progress.warnings, *commit_rest(root, domain, registered), *push_data(root, domain)]
    progress.warnings = []
    return tuple(warnings)


@flow(name="domain-arrival", flow_run_name="arrival {domain}", validate_parameters=False)
def domain_arrival(
    root: str | Path,
    source: str | Path | None,
    domain: str,
    role: str = "learn",
    format: str = "auto",
    label: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ArrivalResult:
    """Take one domain in; learn it and publish a new bank when its role is ``learn``.

    Running it again continues where it was interrupted and does nothing where nothing changed. A domain of another role
    that comes after learnt ones renews the bank chain, which knows of it, without training anything.

    Raises:
        UsageError: name, role or source cannot be; nothing was changed.
        StageFailed: a step failed; the last published bank is as it was.
    """
    workspace = require_workspace(root)
    arrival = Arrival(domain, None if source is None else str(source), role, format, label, options or {})
    check_arrivals(workspace, [arrival])
    progress = Progressing(workspace)
    take_in(progress, arrival)
    if role == "learn":
        learn(progress, domain)
    registered = publish(progress, domain if role == "learn" else None)
    warnings = keep(progress, domain, registered)
    return concluded(ArrivalResult(domain, role, dict(progress.outcomes), registered, warnings), registered)
