"""``samcl promote`` and ``rollback``: which bank is champion. What was decided is printed and written down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.output import Settings, emit_json, note, say, show_table
from flows.cli.running import JsonOption, KeepOption, run_flow

if TYPE_CHECKING:
    from tasks.ledger import Ledger

__all__ = ["promote", "rollback", "show_history", "tell_decision"]


def promote(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(help="A registered version, or an alias. Default: the newest bank.")
    ] = "@candidate",
    force: Annotated[bool, typer.Option("--force", help="Although gates fail; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; written down.")] = "",
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a registered bank champion when every gate holds. Exits with 1 when it is not promoted."""
    from flows.cli.board import Board
    from samcl_core.errors import UsageError
    from tasks.ledger import this_user

    settings: Settings = context.obj
    root = settings.root()
    if force and not reason.strip():
        raise UsageError("a promotion by force needs a reason, which is written down", hint="--force --reason TEXT")

    def call() -> dict[str, Any]:
        from flows.promotion import bank_promotion

        return bank_promotion(root, version, actor=this_user(), force=force, reason=reason)

    decision = run_flow(root, Board(), call, keep_server=keep_server)
    if as_json:
        emit_json({key: value for key, value in decision.items() if key != "markdown"})
    else:
        tell_decision(decision)
    if not decision["promoted"]:
        raise typer.Exit(1)


def tell_decision(decision: Mapping[str, Any]) -> None:
    """What was decided about a version: one line, and the gates where they say something."""
    name = f"{decision['model']} version {decision['version']}"
    failed = [gate for gate in decision["gates"] if not gate["passed"]]
    if decision["promoted"]:
        say(f"champion: {name} ({decision['reason']})")
    else:
        say(f"not promoted: {name} ({decision['reason']})")
    for gate in failed:
        say(f"  {gate['name']} ({gate['expected']}): {gate['reason']}")
    if not decision["promoted"]:
        note(f"next: samcl promote {decision['version']} --force --reason TEXT, if it shall be champion nevertheless")


def rollback(
    context: typer.Context,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; written down.")],
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="An earlier champion. Default: the one before.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an earlier champion champion again. Moves an alias, no file; needs no Prefect server."""
    from tasks.ledger import this_user
    from tasks.promotion import rollback as roll_back

    settings: Settings = context.obj
    entry = roll_back(settings.root(), reason=reason, actor=this_user(), to=to)
    if as_json:
        emit_json(entry.values())
        return
    assert entry.before is not None
    before = entry.before["version"]
    say(f"champion: {entry.model} version {entry.version}, bank {entry.bank} (before: version {before})")


def show_history(root: Path, *, as_json: bool) -> None:
    """Print the ledger; exits with 1 when it was tampered with."""
    from tasks.ledger import FILE, read_ledger
    from tasks.registry import model_name

    ledger, model = read_ledger(root), model_name()
    if as_json:
        entries = [entry.values() for entry in ledger.entries]
        emit_json(
            {
                "file": str(root / FILE),
                "entries": entries,
                "champions": ledger.reigns(model),
                "problems": list(ledger.problems),
                "unfinished_bytes": len(ledger.unfinished),
            }
        )
    else:
        _tell_history(ledger, model)
    if ledger.unfinished:
        note(f"the last line of {FILE} was never finished; the next decision sets it aside, nothing else is lost")
    for problem in ledger.problems:
        note(f"error: {problem}")
    if ledger.problems:
        note(f"next: git log -p {FILE}")
        raise typer.Exit(1)


def _tell_history(ledger: Ledger, model: str) -> None:
    if not ledger.entries:
        say("nothing was decided yet")
        return
    header = ["", "time (UTC)", "action", "version", "bank", "by", "why"]
    rows = [
        [
            str(entry.number),
            entry.time,
            f"{entry.action} by force" if entry.forced else entry.action,
            entry.version or "none",
            (entry.bank or "")[:12],
            entry.actor,
            entry.reason,
        ]
        for entry in ledger.entries
    ]
    show_table(header, rows)
    champion = ledger.champion(model)
    if champion is None:
        say(f"{model} has no champion")
    else:
        say(f"champion: {model} version {champion.version}, bank {champion.bank}, since {champion.time}")
