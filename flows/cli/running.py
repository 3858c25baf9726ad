"""Run a flow for a command: a Prefect server around it, its stages on the terminal, and the answer after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from flows.cli.board import Board
from flows.cli.output import emit_json, note, say

__all__ = ["JsonOption", "KeepOption", "answer", "run_flow"]

Result = TypeVar("Result")

KeepOption = Annotated[bool, typer.Option("--keep-server", help="Leave the workspace's Prefect server running.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress stays on stderr.")]


def run_flow(root: Path, board: Board, call: Callable[[], Result], *, keep_server: bool = False) -> Result:
    """Call a flow with a Prefect server around it; its stages are shown on ``board``, Prefect's own lines are not."""
    # Prefect's page keeps every log line; a terminal gets the stages. Read once, when Prefect is imported.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from tasks.server import Server, prefect_server

    def ready(server: Server) -> None:
        board.message(
            f"Prefect: {server.page}{' (until this command ends)' if server.is_new and not keep_server else ''}"
        )

    with board, prefect_server(root, keep=keep_server, on_ready=ready):
        from tasks.steps import watching

        try:
            with watching(board):
                return call()
        finally:
            _send_logs()


def _send_logs() -> None:
    """Log lines go to the server in the background; they must arrive before it is stopped."""
    import logging

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def answer(root: Path, results: Sequence[Any], board: Board, *, as_json: bool = False) -> None:
    """What came of a flow: the R matrix, the bank, its version, where the pictures are."""
    from dataclasses import asdict

    from flows.cli.steps import answer_with_r_matrix
    from samcl_core.stages.places import Places
    from tasks.workspace import Workspace

    params, places = Workspace(root).params(), Places(root)
    registered = next((result.registered for result in reversed(results) if result.registered), None)
    more: dict[str, Any] = {
        "workspace": str(root),
        "results": [asdict(result) for result in results],
        "stages": board.values(),
        "registered": registered,
    }
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        note(f"warning: {warning}")
    if all(outcome == "skipped" for outcome in board.outcomes.values()):
        note("everything was up to date")
    if not places.r_matrix.is_file():
        emit_json(more) if as_json else say(
            f"taken in: {', '.join(result.domain for result in results)}; nothing learnt yet"
        )
        return
    answer_with_r_matrix(root, params, as_json=as_json, **more)
    if not as_json:
        _tell_bank(root, registered)


def _tell_bank(root: Path, registered: dict[str, Any] | None) -> None:
    from tasks.registry import CANDIDATE
    from tasks.tracking import run_url

    if registered is None:
        return
    state = "new" if registered["created"] else "registered before"
    say(f"bank {registered['digest']}")
    say(f"registry: {registered['name']} version {registered['version']}, {CANDIDATE} ({state})")
    if promotion := registered.get("promotion"):
        from flows.cli.promotion import tell_decision

        tell_decision(promotion)
    say(f"pictures: {root / 'pictures'}")
    note(run_url(root, f"models/{registered['name']}/versions/{registered['version']}"))
