"""The workspace's own server: started, shared, found again, stopped; killed commands leave no slot and no lost run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from samcl_core.errors import SamclError
from tasks.devices import num_gpus
from tasks.limits import LIMITS
from tasks.processes import write_record
from tasks.server import Server, prefect_server, running_server, stop_server

pytestmark = pytest.mark.pipeline

COMMAND = """
import pathlib, sys, time
from tasks.server import prefect_server
with prefect_server(pathlib.Path(sys.argv[1])) as server:
    from prefect import flow
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from tasks.limits import held

    @flow(name="domain-arrival")
    def work():
        with held("gpu"):
            print(server.url, server.is_new, flush=True)
            time.sleep(float(sys.argv[2]))

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        work()
"""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests that this process ran before may have left a server in its environment and settings."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for name in ("PREFECT_API_URL", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


@contextlib.contextmanager
def command(root: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", COMMAND, str(root), str(seconds)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def record(root: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((root / ".samcl/prefect/server.json").read_text())
    return values


def test_life_of_a_server(tmp_path: Path) -> None:
    # A record of a process that is not there any more is ignored.
    stale = tmp_path / ".samcl/prefect/server.json"
    write_record(stale, os.getpid(), url="http://127.0.0.1:9/api", keep=True, users=[])
    assert running_server(tmp_path) is None

    with command(tmp_path, 300) as first:
        url, is_new = said(first)
        assert is_new == "True"
        pid = int(str(record(tmp_path)["pid"]))
        # A killed command leaves the server, a flow run that reads Running, and a slot.
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert psutil.pid_exists(pid)

    # The next command repairs all three; the lease alone would hold the slot for 60 s and more.
    started = time.monotonic()
    with command(tmp_path, 300) as second:
        assert said(second) == [url, "False"]
        assert time.monotonic() - started < 45
        seen: list[Server] = []
        with prefect_server(tmp_path, on_ready=seen.append) as server:
            assert (server.url, server.is_own, server.is_new) == (url, True, False)
            assert seen == [server]
            assert os.environ["PREFECT_API_URL"] == url
            assert states() == {"CRASHED": 1, "RUNNING": 1}
            assert limits() == {"gpu": num_gpus(), "params": 1, "bank": 1}
            set_limit("bank", 3)
            # A termination signal ends the command in order; this test still uses the server, so it stays.
            second.terminate()
            assert second.wait(30) != 0
            assert psutil.pid_exists(pid)
    assert "PREFECT_API_URL" not in os.environ
    assert not psutil.pid_exists(pid)
    assert running_server(tmp_path) is None

    # Kept on request; a number that somebody set stays.
    with prefect_server(tmp_path, keep=True) as server:
        assert server.is_new
        assert limits()["bank"] == 3
    assert running_server(tmp_path) is not None
    assert stop_server(tmp_path)
    assert running_server(tmp_path) is None
    assert not stop_server(tmp_path)


def states() -> dict[str, int]:
    from prefect.client.orchestration import get_client

    found: dict[str, int] = {}
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            name = run.state_type.value
            found[name] = found.get(name, 0) + 1
    return found


def limits() -> dict[str, int]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {name: client.read_global_concurrency_limit_by_name(name).limit for name in LIMITS}


def set_limit(name: str, slots: int) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=slots))


def test_a_configured_server_that_does_not_answer(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from tasks.server import prefect_server\nwith prefect_server(pathlib.Path('.')): pass"
    )
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "the Prefect server at http://127.0.0.1:9/api does not answer" in done.stderr
    assert not (tmp_path / ".samcl").exists()


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / ".samcl/prefect/prefect.db").mkdir(parents=True)
    with pytest.raises(SamclError, match="did not start") as caught, prefect_server(tmp_path):
        pass
    assert "server.log" in caught.value.hint
    assert not (tmp_path / ".samcl/prefect/server.json").exists()


@pytest.mark.parametrize(("visible", "expected"), [("", 1), ("-1", 1), ("0", 1), ("0,1,3", 3)])
def test_gpu_slots(monkeypatch: pytest.MonkeyPatch, visible: str, expected: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_gpus() == expected
