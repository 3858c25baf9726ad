"""``samcl init``, ``remove`` and ``server``: the folder that holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import Settings, note, say

__all__ = ["init", "remove", "server"]


def init(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="The workspace; made when absent. Default: this folder.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Frozen model: sam_nano, sam_vit_b/l/h, sam2.1_hiera_tiny/small/base_plus/large. New: sam_nano."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="default, or reference (the published code). New: default.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. New: auto.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Only take over the installed code of an existing workspace.")
    ] = False,
) -> None:
    """Make a workspace: settings, pipeline, git and DVC. What is there stays as it is."""
    from tasks.workspace import Workspace, find_workspace, init_workspace

    settings: Settings = context.obj
    start = folder or settings.start
    if refresh:
        workspace = Workspace(find_workspace(start))
        changed = workspace.refresh_code()
        state = "taken over; steps whose code changed run again" if changed else "current"
        say(f"{workspace.root}: code.yaml {state}")
        return
    workspace = init_workspace(start, backbone=backbone, profile=profile, device=device)
    params = workspace.params()
    settled = f"backbone {params.backbone.name}, profile {params.profile}, device {params.device}"
    say(f"workspace {workspace.root} ({settled})")
    _advise(params.backbone.name, params.backbone.checkpoint)
    note("next: samcl stream FOLDER_OF_DOMAINS, or samcl arrive FOLDER_OF_ONE_DOMAIN")


def _advise(name: str, checkpoint: str | None) -> None:
    if name == "sam_nano" or checkpoint is not None:
        return
    from samcl_core.backbones.checkpoints import is_present

    if not is_present(name):
        note(f"the weights of {name} are not here yet: samcl checkpoints fetch {name}")


def remove(
    context: typer.Context,
    domain: Annotated[str, typer.Argument(help="The domain to take out.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a domain out of the workspace: its settings, files, module and lock entries. Later banks are made again."""
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    workspace = Workspace(settings.root())
    if not yes and not typer.confirm(f"Remove {domain} and everything learnt from it from {workspace.root}?"):
        note("nothing was removed")
        raise typer.Exit(1)
    later = workspace.remove_domain(domain)
    say(f"removed {domain}")
    if later:
        note(f"the banks of {', '.join(later)} must be made again: samcl stream")


def server(
    context: typer.Context,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it, whoever uses it.")] = False,
) -> None:
    """Say whether the workspace's own Prefect server lives (``--keep-server`` leaves it running), or stop it."""
    from tasks.server import running_server, stop_server

    settings: Settings = context.obj
    root = settings.root()
    if stop:
        say("stopped" if stop_server(root) else "no server was running")
        return
    found = running_server(root)
    say(f"running: {found.page}" if found else "not running; commands that need one start it")
