"""``kill -9`` in every step, then the same command again: the bank of an undisturbed run, once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from samcl_core.bank import Bank, Module
from tasks import dvc
from tasks.processes import Record, read_record
from tasks.registry import CANDIDATE, all_versions, read_version
from tasks.tracking import open_tracker
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800)]

COMMAND = """
import os, pathlib, signal, sys
root, source, moment = sys.argv[1:]
if moment:
    from tasks.tracking import prepare
    prepare()
    from mlflow import MlflowClient
    create = MlflowClient.create_model_version
    def killed(*arguments, **options):
        if moment == "after":
            create(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    MlflowClient.create_model_version = killed
from tasks.server import prefect_server
with prefect_server(pathlib.Path(root)):
    from flows.arrival import domain_arrival
    print(domain_arrival(root, source, "Polyp").registered["created"])
"""


def start(workspace: Workspace, drawn: Path, moment: str = "") -> subprocess.Popen[str]:
    """The arrival of a domain as a command; it kills itself ``before`` or ``after`` MLflow makes the version."""
    environment = os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    environment.pop("PREFECT_API_URL", None)
    arguments = [sys.executable, "-c", COMMAND, str(workspace.root), str(drawn / "polyp"), moment]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def finish(workspace: Workspace, drawn: Path) -> str:
    with start(workspace, drawn) as command:
        out, _ = command.communicate(timeout=600)
    assert command.returncode == 0
    return out


def made(root: Path) -> Workspace:
    workspace = init_workspace(root, device="cpu")
    params = workspace.root / "params.yaml"
    params.write_text(
        params.read_text().replace("epochs: 20", "epochs: 40").replace("buffer_size: 300", "buffer_size: 8")
    )
    return workspace


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> str:
    """Digest of the bank of a run that nobody killed."""
    workspace = made(tmp_path_factory.mktemp("undisturbed"))
    assert finish(workspace, drawn) == "True\n"
    return Bank.load(workspace.places.bank("Polyp")).digest


def kill_in(
    workspace: Workspace, drawn: Path, target: str, *, also_step: bool, until: Callable[[], object] = lambda: True
) -> Record:
    """Run the command until it is inside a step, then kill it, with the step (a power cut) or without."""
    log = workspace.root / ".samcl" / "logs" / f"{target}.log"
    log.unlink(missing_ok=True)
    with start(workspace, drawn) as command:
        end = time.monotonic() + 300
        while not (log.is_file() and f"Running stage '{target}'" in log.read_text() and until()):
            assert command.poll() is None
            assert time.monotonic() < end, f"{target} never began"
            time.sleep(0.02)
        command.send_signal(signal.SIGKILL)
        command.wait()
    left = read_record(workspace.root / ".samcl" / "run" / f"{target}.json")
    assert left is not None
    if also_step:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(left["pid"], signal.SIGKILL)
    return left


def versions(root: Path) -> list[Any]:
    with open_tracker(root) as tracker:
        return all_versions(tracker)


def test_every_step_is_killed_once(tmp_path: Path, drawn: Path, undisturbed: str) -> None:
    workspace = made(tmp_path / "w")
    root, places = workspace.root, workspace.places
    kill_in(workspace, drawn, "ingest@Polyp", also_step=True)
    kill_in(workspace, drawn, "points@Polyp", also_step=True)
    assert not places.module("Polyp").exists()

    # The step of a killed command lives on; the next command ends it and goes on from its checkpoint.
    checkpoint = places.checkpoint("Polyp")
    left = kill_in(workspace, drawn, "train@Polyp", also_step=False, until=lambda: list(checkpoint.parent.glob("*")))
    assert psutil.pid_exists(left["pid"])
    assert not places.module("Polyp").exists()

    kill_in(workspace, drawn, "bank@Polyp", also_step=True)
    assert not psutil.pid_exists(left["pid"])
    assert Module.load(places.module("Polyp")).digest
    kill_in(workspace, drawn, "evaluate@Polyp", also_step=True)
    assert versions(root) == []

    for moment, num_versions in (("before", 0), ("after", 1)):
        with start(workspace, drawn, moment) as command:
            command.communicate(timeout=600)
        assert command.returncode == -signal.SIGKILL
        assert len(versions(root)) == num_versions

    assert finish(workspace, drawn) == "False\n"  # the version is there, once
    bank = Bank.load(places.bank("Polyp"))
    assert (bank.names, bank.digest) == (("Polyp",), undisturbed)
    (version,) = versions(root)
    assert version.digest == undisturbed
    with open_tracker(root) as tracker:
        assert read_version(tracker, f"@{CANDIDATE}").version == version.version
    assert dvc.status(root) == {}
    assert not list((root / ".samcl" / "run").glob("*.json"))
