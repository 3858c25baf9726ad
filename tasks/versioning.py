"""What an arrival leaves in git and on the DVC remote. Neither may fail an arrival: what went wrong is a warning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from samcl_core.errors import SamclError
from samcl_core.files import digest_json, sha256_file, write_atomic
from samcl_core.stages.places import Places
from tasks import dvc
from tasks.git import RECORD, changed_files, commit_own, git, is_committing, unknown_files
from tasks.steps import told
from tasks.workspace import Workspace

__all__ = ["commit", "commit_bank", "commit_rest", "push", "push_data"]

_NEEDED = ("params.yaml", "dvc.yaml", "dvc.lock", "code.yaml", ".dvc/config")


@task(name="commit", task_run_name="commit {subject}", cache_policy=NO_CACHE)
def commit(root: Path, subject: str, facts: Mapping[str, str]) -> str | None:
    """Commit the pipeline's own files; returns the new commit, ``None`` where nothing changed.

    Raises:
        SamclError: git refuses.
    """
    run_id = flow_run.get_id()
    lines = [f"{name}: {text}" for name, text in facts.items()] + ([f"flow run: {run_id}"] if run_id else [])
    with Workspace(root).lock("git"), dvc.alone(root):
        return commit_own(root, "\n".join([subject, "", *lines]).rstrip() + "\n")


@task(name="push", task_run_name="push after {domain}", cache_policy=NO_CACHE)
def push(root: Path, domain: str, remote: str | None) -> None:
    """Copy what is tracked to the DVC remote; a workspace without any has nowhere to copy to.

    Raises:
        SamclError: the remote cannot be reached, or does not take the files.
    """
    with told(f"push@{domain}") as tell:
        try:
            dvc.push(root, remote)
        except dvc.NoRemote:
            tell("skipped")


def commit_bank(root: Path, domains: Sequence[str], step: str) -> tuple[str | None, list[str]]:
    """Commit what made the bank of ``step``, before it is registered.

    Args:
        root: the workspace.
        domains: those that arrived; none where banks only followed a change.
        step: the last step that was brought up to date.

    Returns:
        The commit that holds it, ``None`` where flows do not commit or git did not take everything; and warnings.
    """
    if not is_committing(root, Workspace(root).params()):
        return None, []
    folder = Places(root).bank(step)
    bank = _json(folder / "bank.json")
    data = {name: str(_json(folder / "modules" / name / "module.json")["data_digest"]) for name in bank["domains"]}
    subject = f"Bank after {step}: {bank['digest'][:12]}"
    learnt = [domain for domain in domains if domain in data]
    if learnt:
        told = f"data {data[learnt[0]][:12]}, " if len(learnt) == 1 else ""
        subject = f"Learn {', '.join(learnt)}: {told}bank {bank['digest'][:12]}"
    warnings = _commit(root, subject, {f"data {name}": digest for name, digest in data.items()}, bank["digest"])
    if warnings:
        return None, warnings
    unknown = unknown_files(root, [*_NEEDED, *(f"data/raw/{name}.dvc" for name in data)])
    if unknown:
        text = f"git does not hold {', '.join(unknown)}; next: git check-ignore -v {unknown[0]}"
        return None, [_warned(text)]
    return git(root, "rev-parse", "HEAD").stdout.strip(), []


def commit_rest(root: Path, domain: str, registered: Mapping[str, Any] | None) -> list[str]:
    """Commit what came after the bank (the ledger's lines), or a domain that is not learnt; returns warnings."""
    if not is_committing(root, Workspace(root).params()):
        return []
    decision = (registered or {}).get("promotion")
    raw = dvc.raw_digests(root).get(domain, "")
    subject = f"Take {domain} in: data {raw[:12]}"
    if decision is not None:
        subject = f"Version {decision['version']}: {decision['decision']} ({decision['reason']})"
    return _commit(root, subject, {f"raw data {domain}": raw}, (registered or {}).get("digest"))


def push_data(root: Path, domain: str) -> list[str]:
    """``dvc push`` when anything changed since the last one that succeeded; returns warnings."""
    params = Workspace(root).params().versioning
    note, state = root / ".samcl" / "pushed", _push_state(root, params.remote)
    if not params.push or (note.is_file() and note.read_text(encoding="utf-8").strip() == state):
        return []
    try:
        push(root, domain, params.remote)
    except SamclError as exc:
        text = f"{domain} is not on the DVC remote: {exc.message}"
        return [_warned(f"{text}\n  next: {exc.hint or 'dvc push'}; the next arrival tries again, too")]
    write_atomic(note, state.encode())
    return []


def _commit(root: Path, subject: str, facts: dict[str, str], bank: str | None) -> list[str]:
    try:
        if changed_files(root, RECORD):
            commit(root, subject, facts | ({"bank": bank} if bank else {}))
    except SamclError as exc:
        return [_warned(f"nothing was committed: {exc.message}\n  next: {exc.hint or 'git status'}")]
    return []


def _push_state(root: Path, remote: str | None) -> str:
    """Digest of everything that a push depends on: what is tracked, and where it goes."""
    files = [root / "dvc.lock", root / ".dvc" / "config", root / ".dvc" / "config.local"]
    files += sorted((root / "data" / "raw").glob("*.dvc"))
    digests = {path.relative_to(root).as_posix(): sha256_file(path) for path in files if path.is_file()}
    return digest_json([remote, digests])


def _warned(text: str) -> str:
    get_run_logger().warning(text)
    return text


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
