"""``kill -9`` in the middle of training, then the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from samcl_core.bank import Bank, Module
from tasks import dvc
from tasks.processes import read_record
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

COMMAND = """
import pathlib, sys
from tasks.server import prefect_server
root, source = map(pathlib.Path, sys.argv[1:])
with prefect_server(root):
    from flows.arrival import domain_arrival
    print(domain_arrival(root, source, "Polyp").registered["created"])
"""


def start(workspace: Workspace, drawn: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    environment.pop("PREFECT_API_URL", None)
    arguments = [sys.executable, "-c", COMMAND, str(workspace.root), str(drawn / "polyp")]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_in_training_and_run_again(tmp_path: Path, drawn: Path) -> None:
    workspace = init_workspace(tmp_path / "w", device="cpu")
    params = workspace.root / "params.yaml"
    params.write_text(
        params.read_text().replace("epochs: 20", "epochs: 40").replace("buffer_size: 300", "buffer_size: 8")
    )
    checkpoint = workspace.places.checkpoint("Polyp")
    with start(workspace, drawn) as command:
        end = time.monotonic() + 240
        while not list(checkpoint.parent.glob("*")):
            assert command.poll() is None
            assert time.monotonic() < end, "training never began"
            time.sleep(0.05)
        command.send_signal(signal.SIGKILL)
        command.wait()
    # The step lives on; nothing of the module or a bank is to be seen.
    left = read_record(workspace.root / ".samcl/run/train@Polyp.json")
    assert left is not None
    assert psutil.pid_exists(left["pid"])
    assert not workspace.places.module("Polyp").exists()
    assert not workspace.places.bank("Polyp").exists()

    with start(workspace, drawn) as command:
        out, _ = command.communicate(timeout=400)
    assert (command.returncode, out) == (0, "True\n")
    assert not psutil.pid_exists(left["pid"])
    assert Module.load(workspace.places.module("Polyp")).digest
    assert Bank.load(workspace.places.bank("Polyp")).names == ("Polyp",)
    assert dvc.status(workspace.root) == {}
    assert not list((workspace.root / ".samcl" / "run").glob("*.json"))
