"""MLflow goes away between the evaluation and the registration: tried again, failed visibly, completed later."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.arrival import domain_arrival
from flows.cli.main import run
from samcl_core.bank import Bank, verify_bank
from tasks import dvc
from tasks.ledger import read_ledger
from tasks.processes import end_group
from tasks.registry import CANDIDATE, CHAMPION, BankVersion, aliases, all_versions
from tasks.server import Server
from tasks.steps import watching
from tasks.tracking import RegistryUnavailable, open_tracker
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real tracking server; what it stores stays in ``folder``."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'm.db'}", "--artifacts-destination", str(folder / "files")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield process
    finally:
        end_group(process.pid)
        process.wait()


class GoesAway:
    """A watcher that ends the MLflow server as soon as the report is written: registration comes next."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.over: dict[str, list[str]] = {}

    def started(self, stage: str) -> None:
        pass

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        pass

    def ended(self, stage: str, outcome: str) -> None:
        self.over.setdefault(stage, []).append(outcome)
        if stage == "report":
            end_group(self.process.pid)
            self.process.wait()


def registered(workspace: Workspace) -> tuple[list[BankVersion], dict[str, str]]:
    with open_tracker(workspace.root) as tracker:
        return all_versions(tracker), aliases(tracker)


def test_registration_is_completed_when_mlflow_is_back(
    tmp_path: Path,
    drawn: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = init_workspace(tmp_path / "w", device="cpu")
    root, port = workspace.root, free_port()
    params = root / "params.yaml"
    params.write_text(
        params.read_text().replace("epochs: 20", "epochs: 1").replace("buffer_size: 300", "buffer_size: 8")
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    with mlflow_server(tmp_path / "mlflow", port) as process:
        away = GoesAway(process)
        with watching(away):
            state = domain_arrival(root, drawn / "polyp", "Polyp", return_state=True)
    assert state.is_failed()
    with pytest.raises(RegistryUnavailable, match=f"MLflow at http://127.0.0.1:{port}") as caught:
        state.result()
    assert "samcl register" in caught.value.hint
    assert away.over["register@Polyp"] == ["failed"] * 4, "three times again"
    bank = Bank.load(workspace.places.bank("Polyp"))
    assert verify_bank(workspace.places.bank("Polyp")) == []
    assert dvc.status(root) == {}
    assert "decide@Polyp" not in away.over
    assert read_ledger(root).entries == ()

    with mlflow_server(tmp_path / "mlflow", port):
        assert registered(workspace) == ([], {})
        with pytest.raises(SystemExit) as ended:
            run(["-C", str(root), "register", "--json"])
        assert not ended.value.code
        found = json.loads(capsys.readouterr().out)
        assert (found["version"], found["digest"], found["created"]) == ("1", bank.digest, True)
        versions, named = registered(workspace)
        assert [version.digest for version in versions] == [bank.digest]
        assert named == {CANDIDATE: "1"}, "registering promotes nothing"
        assert CHAMPION not in named

        # The next arrival of the same data only decides.
        again = domain_arrival(root, drawn / "polyp", "Polyp")
        assert set(again.outcomes.values()) == {"skipped"}
        assert again.registered is not None
        assert (again.registered["version"], again.registered["created"]) == ("1", False)
        assert again.registered["promotion"]["version"] == "1"
        assert len(registered(workspace)[0]) == 1
