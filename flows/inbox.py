"""Flows of the inbox: a look that takes complete drops, and the arrival of one drop: checked, learnt, or put aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.arrival import ArrivalResult, domain_arrival
from samcl_core.errors import DataError, SamclError, UnsafeFileError, UsageError
from tasks import inbox, taken
from tasks.runs import start_apart
from tasks.steps import artifact_key, require_workspace, told
from tasks.taken import Prepared, Taken
from tasks.tracking import RegistryUnavailable
from tasks.workspace import Workspace

__all__ = ["drop_arrival", "inbox_look"]

_THE_DROPS_FAULT = (DataError, UnsafeFileError, UsageError)


@flow(name="inbox", flow_run_name="look into the inbox", validate_parameters=False)
def inbox_look(root: str | Path, arrivals: str | None = None) -> list[dict[str, Any]]:
    """Look into the inbox once. Complete drops, and those that an interrupted run left, are taken in.

    Args:
        root: the workspace.
        arrivals: deployment that takes a drop in, as a flow run of its own; ``None`` takes them in here, one after the
            other. A drop that fails never holds up the others.

    Returns:
        For each drop ``name``, ``state`` (``learnt``, ``taken in``, ``unchanged``, ``rejected``, ``failed``,
        ``started``, ``waiting``, ``stuck``) and ``why``; ``domain``, ``report`` and ``registered`` where there are any.

    Raises:
        UsageError: it is no workspace, or there is no such inbox.
        SamclError: the inbox cannot be read now.
    """
    workspace = Workspace(Path(root).resolve())
    with inbox.looking(workspace.root) as is_free:
        if not is_free:
            return _concluded([{"name": "", "state": "waiting", "why": "another command looks into the inbox"}])
        seen, waiting = _look(workspace.root)
    results = [asdict(one) for one in seen if one.state != "taken"]
    for drop in waiting:
        results.append(_start(workspace.root, drop, arrivals) if arrivals else _take_in_here(workspace.root, drop))
    _show_look(results)
    return _concluded(results)


@task(name="look", task_run_name="look", cache_policy=NO_CACHE)
def _look(root: Path) -> tuple[list[inbox.Seen], list[Taken]]:
    """Take what is complete; also returns everything that was taken and is not learnt yet, oldest first."""
    seen = inbox.look(root, Workspace(root).params().inbox)
    return seen, taken.leftovers(root)


def _start(root: Path, drop: Taken, deployment: str) -> dict[str, Any]:
    if taken.is_worked_on(root, drop.id):
        return {"name": drop.name, "state": "started", "why": "its arrival is running"}
    try:
        run, is_new = start_apart(root, drop, deployment)
    except Exception as exc:  # the next look tries again; the other drops go on
        return {"name": drop.name, "state": "stuck", "why": f"its arrival could not be started: {exc}"}
    return {"name": drop.name, "state": "started", "why": f"flow run {run}" + ("" if is_new else " (was there before)")}


def _take_in_here(root: Path, drop: Taken) -> dict[str, Any]:
    try:
        result: dict[str, Any] = drop_arrival(root, drop=drop.id)
    except Exception as exc:  # whatever it is: the other drops go on
        why = exc.message if isinstance(exc, SamclError) else f"{type(exc).__name__}: {exc}"
        return {"name": drop.name, "state": "failed", "why": why, "next": getattr(exc, "hint", "") or "samcl inbox"}
    return result


def _arrival_name() -> str:
    from prefect.runtime import flow_run

    given = flow_run.get_parameters()
    return f"drop {given.get('drop') or Path(str(given.get('path'))).name}"


@flow(name="drop-arrival", flow_run_name=_arrival_name, validate_parameters=False)
def drop_arrival(
    root: str | Path,
    drop: str | None = None,
    path: str | None = None,
    domain: str | None = None,
    role: str | None = None,
    format: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Take one drop in: unpack it, look at every file, learn it. A bad one goes to ``data/rejected`` with a report.

    Repeating it continues after any interruption. The same content again changes nothing.

    Args:
        root: the workspace.
        drop: one that a look took out of the inbox; or
        path: a folder or archive that is complete, on this machine or at an address that fsspec knows.
        domain: its name; by default what its ``domain.yaml`` says, else the name of the file or folder.
        role: ``learn``, ``natural`` or ``unseen``; by default what ``domain.yaml`` says, else as declared, else learn.
        format: name of its layout; by default found out.
        label: a text for people.

    Returns:
        As ``inbox_look``, for this drop.

    Raises:
        UsageError: there is no such drop or path.
        SamclError: it failed for another reason than its data (other exceptions pass, too); it is kept, and the next
            look tries again, ``inbox.max_tries`` times in all.
    """
    workspace = require_workspace(root)
    options = workspace.params().inbox
    if drop:
        record = taken.read_taken(workspace.root, drop)
    elif path:
        record = inbox.announce(workspace.root, options, path, domain=domain, role=role, format=format, label=label)
    else:
        raise UsageError("neither a taken drop nor a path is given", hint="give `path`: a folder or archive")
    with taken.working_on(workspace.root, record.id, timeout_s=2.0) as is_free:
        if not is_free:
            return {"name": record.name, "state": "started", "why": "another flow run takes it in"}
        record = taken.begun(workspace.root, taken.read_taken(workspace.root, record.id))
        try:
            result = _check_and_learn(workspace, record)
        except Exception as exc:
            error = exc if isinstance(exc, SamclError) else SamclError(f"{type(exc).__name__}: {exc}")
            # A registry that is away says nothing about the drop: it is tried as often as it takes.
            tries = record.tries - isinstance(exc, RegistryUnavailable)
            taken.write_taken(workspace.root, replace(record, tries=tries, error=error.message))
            if tries < options.max_tries:
                raise
            result = _reject(workspace.root, record, error)
    return _concluded_one(result)


def _check_and_learn(workspace: Workspace, record: Taken) -> dict[str, Any]:
    try:
        prepared = prepare(workspace.root, record)
    except _THE_DROPS_FAULT as exc:
        return _reject(workspace.root, record, exc)
    return _arrive(workspace, record, prepared)


def _arrive(workspace: Workspace, record: Taken, prepared: Prepared) -> dict[str, Any]:
    with workspace.lock(f"arrival-{prepared.domain}"):
        found = domain_arrival(
            workspace.root,
            prepared.folder,
            prepared.domain,
            prepared.role,
            prepared.format,
            prepared.label,
        )
    _show_arrival(record, prepared, found)
    taken.finish(workspace.root, record)
    return {
        "name": record.name,
        "state": _state(found),
        "why": "",
        "domain": prepared.domain,
        "outcomes": found.outcomes,
        "registered": found.registered,
        "left_out": dict(prepared.reasons),
    }


def _state(found: ArrivalResult) -> str:
    if set(found.outcomes.values()) <= {"skipped"} and not (found.registered or {}).get("created"):
        return "unchanged"
    return "learnt" if found.role == "learn" else "taken in"


@task(name="prepare", task_run_name="check {record.name}", cache_policy=NO_CACHE)
def prepare(root: Path, record: Taken) -> Prepared:
    """Unpack and look at every file."""
    with told(f"check@{record.name}") as tell:
        return taken.prepare(root, Workspace(root).params(), record, tell.progress)


def _reject(root: Path, record: Taken, error: SamclError) -> dict[str, Any]:
    folder = taken.reject(root, Workspace(root).params(), record, error)
    report = next(path for path in (folder / "report.md", folder / "why.md") if path.is_file())
    get_run_logger().warning("%s is rejected: %s", record.name, error.message)
    page = report.read_text(encoding="utf-8")
    create_markdown_artifact(page, artifact_key("rejected", record.id), f"{record.name} is rejected")
    place = report.relative_to(root).as_posix()
    return {"name": record.name, "state": "rejected", "why": error.message, "report": place, "next": error.hint}


def _show_look(results: Sequence[Mapping[str, Any]]) -> None:
    rows = [{key: one.get(key) or "" for key in ("name", "state", "domain", "why", "report")} for one in results]
    if rows:
        create_table_artifact(rows, "inbox", "what the last look found")


def _show_arrival(record: Taken, prepared: Prepared, found: ArrivalResult) -> None:
    facts = {
        "dropped in": record.origin,
        "files": f"{record.num_files}, {record.num_bytes} bytes",
        "domain": prepared.domain,
        "role": prepared.role,
        "images": f"{prepared.num_train} train, {prepared.num_test} test",
        "label": prepared.label or "",
        "notes": prepared.notes or "",
        "came to": _state(found),
    }
    lines = [f"| {name} | {' '.join(str(text).split())} |" for name, text in facts.items() if text]
    left = [f"- `{name}`: {reason}" for name, reason in prepared.reasons.items()]
    parts = [f"# {record.name}", "| | |\n| --- | --- |\n" + "\n".join(lines)]
    parts += ["## Left out", "\n".join(left)] if left else []
    create_markdown_artifact("\n\n".join(parts), artifact_key("drop", prepared.domain), f"{record.name} arrived")


def _concluded_one(result: dict[str, Any]) -> dict[str, Any]:
    names = {"rejected": "Rejected", "unchanged": "Unchanged"}
    if result["state"] not in names:
        return result
    state: Any = Completed(name=names[result["state"]], message=str(result["why"])[:500], data=result)
    return state  # type: ignore[no-any-return]  # Prefect hands the state's data to the caller


def _concluded(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results, in a completed state whose name says when something needs a person or nothing was there."""
    states = {one["state"] for one in results}
    bad = [one for one in results if one["state"] in {"rejected", "failed", "stuck"}]
    name = "With problems" if bad else "Nothing new" if states <= {"waiting"} else None
    if name is None:
        return results
    message = "; ".join(f"{one['name']}: {one['state']}" for one in bad or results)
    state: Any = Completed(name=name, message=message[:500], data=results)
    return state  # type: ignore[no-any-return]  # Prefect hands the state's data to the caller
