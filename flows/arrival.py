"""The flow of one arriving domain: receive, check, learn, publish; a stream of domains publishes in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import publish_step
from flows.own_part import Arrival, Progressing, check_arrivals
from flows.promotion import concluded, settle
from flows.side_by_side import side_by_side
from samcl_core.stages.places import BASE
from tasks.limits import held
from tasks.steps import append_to_stream, register, registration, require_workspace
from tasks.versioning import commit_bank, commit_rest, push_data

__all__ = ["Arrival", "ArrivalResult", "Progressing", "check_arrivals", "domain_arrival", "keep", "publish"]


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


def publish(progress: Progressing, domains: Sequence[str], *, upto: str | None = None) -> dict[str, Any] | None:
    """One critical section: the bank of each step, its evaluation, the report and the registered version.

    Args:
        progress: the flow run's stages.
        domains: learnt ones that join the stream where they are not in it, several of them with one fit of the
            selector; without any the present stream is brought up to date.
        upto: last step to bring up to date, one that fits the selector; the whole stream when ``None``. Steps whose
            inputs did not change are skipped, so a changed early step carries through to the last.

    Returns:
        The registered version of the last of these steps, ``None`` for an empty stream. Steps inside a back-fill are no
        versions.
    """
    workspace = progress.workspace
    with nullcontext() if _is_published(progress, domains) else held("bank"):
        if new := [domain for domain in domains if domain not in workspace.params().stream]:
            append_to_stream(workspace.root, new)
            for domain in new:
                progress.touch(domain)
        params = workspace.params()
        steps = params.steps()[: params.steps().index(upto) + 1 if upto else None]
        if not steps:
            return None
        _make_banks(progress, steps)
        if all(workspace.places.scores(step).is_file() for step in params.steps()):
            progress.run("report")
        commit, warnings = commit_bank(workspace.root, domains, steps[-1])
        progress.warnings += warnings
        fitted = [step for step in steps if params.stream[step].fit]
        registered = [registration(workspace.root, step) or register(workspace.root, step, commit) for step in fitted]
        if steps == params.steps():
            registered[-1] = {**registered[-1], "promotion": settle(workspace.root, steps[-1], registered[-1])}
    if not progress.is_untouched or steps == params.steps():
        publish_step(workspace.root, params, steps[-1], registered[-1])
    return registered[-1]


def _is_published(progress: Progressing, domains: Sequence[str]) -> bool:
    steps = progress.workspace.params().steps()
    targets = [BASE, "report", *(f"{stage}@{step}" for step in steps for stage in ("bank", "evaluate"))]
    return set(domains) <= set(steps) and all(map(progress.is_clean, targets))


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
    progress = Progressing.begun(workspace)
    with side_by_side(progress, [arrival]) as parts:
        parts.finish(arrival)
    registered = publish(progress, [domain] if role == "learn" else [])
    warnings = keep(progress, domain, registered)
    return concluded(ArrivalResult(domain, role, dict(progress.outcomes), registered, warnings), registered)
