"""``samcl serve``: a registered bank behind HTTP, by MLflow's own scoring server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import Settings, note

__all__ = ["serve", "serve_command"]


def serve(
    context: typer.Context,
    version: Annotated[str | None, typer.Option(help="Number of the version. Default: the alias.")] = None,
    alias: Annotated[str, typer.Option(help="Version with this alias, as it stands now.")] = "champion",
    host: Annotated[str, typer.Option(help="Address to listen on. There is no password: keep it local.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5001,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")] = None,
) -> None:
    """Answer requests with a registered bank until interrupted (mlflow models serve, in this environment)."""
    from tasks.registry import model_name, read_version
    from tasks.tracking import open_tracker, tracking_uri

    settings: Settings = context.obj
    root = settings.root()
    with open_tracker(root) as tracker:
        found = read_version(tracker, version or f"@{alias}")
    # The version, not the alias: what is said here is what is served, also when the alias moves in this moment.
    command = serve_command(f"models:/{model_name()}/{found.version}", host, port)
    which = f"version {found.version}" if version else f"version {found.version} (@{alias})"
    note(f"{model_name()} {which}, bank {found.digest[:12]}: http://{host}:{port}/invocations")
    # MLflow looks for uvicorn on the PATH, where an environment that is not activated has none.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracking_uri(root)}
    if device is not None:
        environment["SAMCL_DEVICE"] = device
    os.execve(command[0], command, environment)


def serve_command(model_uri: str, host: str, port: int) -> list[str]:
    """The command that serves ``model_uri`` with the Python and packages of this process."""
    server = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model_uri, "--env-manager", "local"]
    return [*server, "--host", host, "--port", str(port)]
