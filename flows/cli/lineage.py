"""``samcl reproduce``, and what ``bank show VERSION`` and ``bank of DOMAIN`` print: where banks came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.output import Settings, emit_json, note, say, show_table

__all__ = ["reproduce", "tell_banks", "tell_provenance"]


def reproduce(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="A registered version, or an alias such as @champion.")],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="Keep everything in this new folder. Default: kept if different."),
    ] = None,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Run the installed code although other code made the version.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Make a registered bank again from its git commit and its data, and compare. Exits with 1 when it differs."""
    from flows.cli.board import Board
    from tasks.reproduce import reproduce as make

    settings: Settings = context.obj
    with Board() as board:
        stages = _Stages(board)
        result = make(
            settings.root(),
            version,
            into=into,
            is_any_code=any_code,
            on_stage=stages.started,
            on_progress=stages.progress,
        )
        stages.end()
    if as_json:
        emit_json(result.values())
        raise typer.Exit(0 if result.is_equal else 1)
    say(f"commit {result.commit}, data from {result.data_from}, {len(result.stages)} stages run")
    if result.is_equal:
        say(f"equal: version {result.version} and the bank made now are {result.found}")
    else:
        say(f"different: version {result.version} is {result.expected}, the bank made now is {result.found}")
        for name in result.differing:
            say(f"  {name}")
        note("the same bytes can be expected on the CPU, with the same versions of the packages")
    if result.folder is not None:
        say(f"folder {result.folder}")
    raise typer.Exit(0 if result.is_equal else 1)


class _Stages:
    """One stage after the other on a board."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._current = ""

    def started(self, stage: str) -> None:
        self.end()
        self._current = stage
        self._board.started(stage)

    def progress(self, what: str, done: int, total: int) -> None:
        if self._current:
            self._board.progress(self._current, what, done, total)

    def end(self) -> None:
        if self._current:
            self._board.ended(self._current, "ran")
        self._current = ""


def tell_provenance(found: Mapping[str, Any]) -> None:
    """Print ``tasks.provenance.provenance``."""
    named = "".join(f", {alias}" for alias in found["aliases"])
    say(f"{found['model']} version {found['version']}{named}, registered {found['registered']}")
    lacking = "" if found["is_reproducible"] else " (and files that it does not hold)"
    facts = {
        "git commit": f"{found['git_commit'] or 'none'}{lacking}",
        "dvc.lock": found["dvc_lock_sha256"],
        "params": found["params_sha256"],
        "code": f"{found['code_sha256']} (samcl {found['samcl_version']})",
        "MLflow run": found["mlflow_run"],
        "flow run": found["flow_run"],
        "decision": _decision(found["decision"]),
        "champion": "; ".join(_reign(reign) for reign in found["champion"]) or "never",
    }
    for name, text in facts.items():
        say(f"{name:<12}{text or 'none'}")
    for gate, text in (found["decision"] or {"gates": {}})["gates"].items():
        say(f"  {gate}: {text}")
    header = ["domain", "training data", "as it arrived (DVC)", "test data"]
    rows = [[name, *(_short(digest) for digest in digests.values())] for name, digests in found["data"].items()]
    show_table(header, rows)


def _decision(decision: Mapping[str, Any] | None) -> str:
    if decision is None:
        return "none yet"
    by = f" by {decision['decided_by']}" if "decided_by" in decision else ""
    at = f" at {decision['decided_at']}" if "decided_at" in decision else ""
    return f"{decision.get('decision', '')}{by}{at}: {decision.get('reason', '')}"


def _reign(reign: Mapping[str, Any]) -> str:
    return f"{reign['since']} to {reign['until'] or 'now'}"


def _short(digest: str | None) -> str:
    return (digest or "")[:12]


def tell_banks(domain: str, versions: Sequence[Mapping[str, Any]]) -> None:
    """Print ``tasks.provenance.banks_of``."""
    say(f"{domain}: {len(versions)} version(s) of its data in registered banks, oldest first")
    header = ["training data", "as it arrived (DVC)", "test data", "in the workspace", "bank versions", ""]
    rows = [
        [
            *(_short(version[kind]) for kind in ("training_data", "raw_data", "test_data")),
            "yes" if version["is_present"] else "",
            ", ".join(_named(bank) for bank in version["banks"]),
            "learnt" if version["holds_module"] else "scored only",
        ]
        for version in versions
    ]
    show_table(header, rows)


def _named(bank: Mapping[str, Any]) -> str:
    names = "".join(f" @{alias}" for alias in bank["aliases"])
    return f"{bank['version']}{names}"
