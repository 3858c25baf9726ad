"""``samcl inbox`` and ``deploy``: data sets that are dropped are taken in, now or from now on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from flows.cli.output import Settings, emit_json, note, say
from flows.cli.running import JsonOption, KeepOption, run_flow

__all__ = ["deploy", "inbox"]

_BAD = frozenset({"rejected", "failed", "stuck"})


def inbox(
    context: typer.Context,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look into the inbox once and take every complete drop in. Exits with 1 when one was rejected or failed."""
    from flows.cli.board import Board
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    root = settings.root()
    options = Workspace(root).params().inbox
    board = Board()

    def call() -> list[dict[str, Any]]:
        from flows.inbox import inbox_look

        found: list[dict[str, Any]] = inbox_look(root)
        return found

    results = run_flow(root, board, call, keep_server=keep_server)
    if as_json:
        emit_json({"inbox": options.url, "drops": results, "stages": board.values()})
    else:
        _tell(results, options.url)
    if any(one["state"] in _BAD for one in results):
        raise typer.Exit(1)


def _tell(results: Sequence[Mapping[str, Any]], url: str) -> None:
    if not results:
        say(f"nothing in {url}")
    for one in results:
        domain = one.get("domain")
        version = (one.get("registered") or {}).get("version")
        more = f" as {domain}" if domain else ""
        more += f", bank version {version}" if version else ""
        more += f": {one['why']}" if one.get("why") else ""
        say(f"{one['name']} {one['state']}{more}".strip())
        if one.get("report"):
            note(f"  read {one['report']}")
        elif one.get("next"):
            note(f"  next: {one['next']}")


def deploy(
    context: typer.Context,
    nightly: Annotated[
        str, typer.Option(metavar="CRON", help="When the champion is evaluated again (UTC); none: never.")
    ] = "0 3 * * *",
    name: Annotated[str | None, typer.Option(help="Name of the deployments. Default: the workspace's folder.")] = None,
) -> None:
    """Serve this workspace until interrupted: inbox, arrivals by event, stream, nightly evaluation of the champion."""
    from tasks.server import prefect_server

    settings: Settings = context.obj
    root = settings.root()
    with prefect_server(root, keep=True) as server:
        from flows.deploy import ARRIVED, deployments_of, serve_workspace
        from tasks.workspace import Workspace

        options = Workspace(root).params().inbox
        deployments = deployments_of(root, name=name, nightly=None if nightly == "none" else nightly)
        note(f"Prefect: {server.page}/deployments")
        for one in deployments:
            note(f"  {one.flow_name}/{one.name}")
        note(f"inbox: {options.url}, every {options.interval_s:g} s; event: {ARRIVED}; end with Ctrl-C")
        serve_workspace(deployments)
    if server.is_own:
        note("the Prefect server stays, for its page: samcl server --stop")
