"""The train stage in several processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from samcl_core.bank import Module
from samcl_core.config import Params, parse_params
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import DataError, SamclError, TrainingError
from samcl_core.stages import ingest, points
from samcl_core.stages.places import Places
from samcl_core.stages.train import run

pytestmark = pytest.mark.slow

STAGE = """
import json, sys
from pathlib import Path
from samcl_core.config import parse_params
from samcl_core.stages.train import run
print("begun", flush=True)
run(Path(sys.argv[1]), parse_params(json.loads(sys.argv[2])), "Polyps")
"""


def make_params(**train: Any) -> Params:
    values = {"epochs": 2, "batch_size": 4, "module_dtype": "float32", **train}
    return parse_params(
        {"backbone": {"name": "tiny"}, "train": values, "domains": {"Polyps": {}}, "modules": {"Polyps": {}}}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_domain(tmp_path / "data" / "raw" / "Polyps", "polyp", 7, 2, 64, 0)
    for stage in (ingest, points):
        stage.run(tmp_path, make_params(), "Polyps")
    return tmp_path


def test_two_processes_store_one_module_and_report_once(root: Path) -> None:
    run(root, make_params(), "Polyps")
    alone = Module.load(Places(root).module("Polyps"))
    seen: list[tuple[str, int, int]] = []
    summary = run(root, make_params(processes=2), "Polyps", lambda *report: seen.append(report))
    module = Module.load(Places(root).module("Polyps"))
    assert summary["module"] == module.digest
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(module.tensors[name], tensor, rtol=1e-4, atol=1e-4)
    assert seen[-1][1:] == (4, 4)
    assert not Places(root).checkpoint("Polyps").exists()


def test_the_error_of_a_process_is_the_stage_s(root: Path) -> None:
    image = next((root / "data" / "Polyps" / "train" / "images").iterdir())
    image.write_bytes(b"no image")
    with pytest.raises(SamclError, match="changed since it was ingested") as caught:
        run(root, make_params(processes=2), "Polyps")
    assert DataError.__name__ in str(caught.value.__cause__) and caught.value.hint


def test_a_killed_process_ends_the_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        workers = [int(pid) for pid in children.stdout.split() if b"train_processes" in command_of(int(pid))]
        if workers and not killed:
            killed.append(max(workers))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"ended with exit code -9 and said nothing"):
        run(root, make_params(processes=2, epochs=10_000), "Polyps", kill)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("whom", ["group", "stage"])
def test_nothing_outlives_the_stage(root: Path, whom: str) -> None:
    params = make_params(processes=2, epochs=10_000).model_dump_json()
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(root), params], start_new_session=True, stdout=subprocess.PIPE
    )
    assert stage.stdout is not None and stage.stdout.readline() == b"begun\n"
    marker = str(root).encode()

    def left() -> list[str]:
        return [p.name for p in Path("/proc").iterdir() if p.name.isdigit() and marker in command_of(int(p.name))]

    deadline = time.monotonic() + 300
    try:
        while not Places(root).checkpoint("Polyps").exists():
            assert time.monotonic() < deadline and stage.poll() is None
            time.sleep(0.1)
        assert len(left()) == 3
        (os.killpg if whom == "group" else os.kill)(stage.pid, signal.SIGKILL)
        stage.wait()
        deadline = time.monotonic() + 60
        while left():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
        stage.stdout.close()
