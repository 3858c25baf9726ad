"""GPU slots with invented device names: real processes, real locks of the operating system, no GPU needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from samcl_core.config import Params, parse_params
from tasks.devices import device_slot, num_gpus, slot_of, visible_devices
from tasks.processes import clean_environment

pytestmark = pytest.mark.pipeline

HOLDER = """
import pathlib, subprocess, sys
from tasks.devices import device_slot
with device_slot(sys.argv[3:], pathlib.Path(sys.argv[1])) as slot:
    child = None
    if sys.argv[2] == "child":
        child = subprocess.Popen(["sleep", "600"], pass_fds=slot.handles, stdout=subprocess.DEVNULL)
    print(slot.device, child.pid if child else "", flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that holds a slot, and perhaps a child of it that does, too."""

    def __init__(self, folder: Path, *devices: str, with_child: bool = False) -> None:
        arguments = [str(folder), "child" if with_child else "", *devices]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def device(self) -> str:
        assert self.process.stdout is not None
        device, _, child = self.process.stdout.readline().rstrip("\n").partition(" ")
        self.child = int(child) if child else None
        return device

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    made: list[Holder] = []
    yield made
    for holder in made:
        holder.close()


@pytest.mark.parametrize(
    ("visible", "most", "expected"),
    [
        ("", None, ()),
        ("-1", None, ()),
        ("0", None, ("0",)),
        (" 2, GPU-1a2b ", None, ("2", "GPU-1a2b")),
        ("0,1,2,3", 2, ("0", "1")),
        ("0", 4, ("0",)),
    ],
)
def test_devices_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, visible: str, most: int | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices(most) == expected
    assert num_gpus(most) == max(1, len(expected))


def test_the_machine_is_asked_where_the_environment_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho '  MIG 1g: x'\necho 'GPU 1: H100 (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_devices() == ("0", "1")


def test_each_gets_its_own_and_then_the_least_used(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = [stack.enter_context(device_slot(("0", "1"), tmp_path)).device for _ in range(3)]
        assert first == ["0", "1", "0"]
        with device_slot(("0", "1"), tmp_path) as fourth:
            assert fourth.environment == {"CUDA_VISIBLE_DEVICES": "1"}
        with device_slot(("0", "1"), tmp_path) as fifth:
            assert fifth.device == "1", "the fourth gave it back"
    with device_slot(("0", "1"), tmp_path) as slot:
        assert slot.device == "0"


def test_a_device_whose_first_user_left_is_still_used(tmp_path: Path) -> None:
    with ExitStack() as outer:
        with device_slot(("A",), tmp_path):
            outer.enter_context(device_slot(("A",), tmp_path))
        with device_slot(("A", "B"), tmp_path) as slot:
            assert slot.device == "B"


def test_processes_that_start_at_once_do_not_share(tmp_path: Path, holders: list[Holder]) -> None:
    devices = ("0", "1", "GPU-8/MIG-3")
    holders += [Holder(tmp_path, *devices) for _ in range(6)]
    assert Counter(holder.device() for holder in holders) == dict.fromkeys(devices, 2)


def test_a_killed_process_leaves_nothing_behind(tmp_path: Path, holders: list[Holder]) -> None:
    holders += [Holder(tmp_path, "0", "1"), Holder(tmp_path, "0", "1")]
    taken = {holder.device(): holder for holder in holders}
    assert set(taken) == {"0", "1"}
    taken["1"].kill()
    with device_slot(("0", "1"), tmp_path) as slot:
        assert slot.device == "1"


def test_a_step_that_outlives_its_flow_keeps_the_device(tmp_path: Path, holders: list[Holder]) -> None:
    holders += [Holder(tmp_path, "0", "1", with_child=True)]
    (holder,) = holders
    assert holder.device() == "0"
    assert holder.child is not None
    holder.kill()
    try:
        with device_slot(("0", "1"), tmp_path) as slot:
            assert slot.device == "1"
    finally:
        os.kill(holder.child, signal.SIGKILL)
    for _ in range(100):
        with device_slot(("0", "1"), tmp_path) as slot:
            if slot.device == "0":
                return
        threading.Event().wait(0.05)
    pytest.fail("the device of the ended step was never free again")


@pytest.mark.parametrize(
    ("target", "visible", "settings"),
    [
        ("ingest@A", "0,1", {}),
        ("train@A", "0", {}),
        ("train@A", "", {}),
        ("train@A", "0,1", {"device": "cuda:1"}),
        ("train@A", "0,1", {"device": "cpu"}),
        ("train@A", "0,1", {"pipeline": {"gpus": 1}}),
    ],
)
def test_nothing_is_chosen_where_there_is_no_choice(
    monkeypatch: pytest.MonkeyPatch, target: str, visible: str, settings: dict[str, object]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with slot_of(target, parse_params(settings)) as slot:
        assert (slot.device, slot.environment, slot.handles) == (None, {}, ())


def test_a_training_of_several_processes_sees_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    params = parse_params({"train": {"processes": 2}, "pipeline": {"gpus": 2}})
    with slot_of("train@A", params) as slot:
        assert (slot.device, slot.environment, slot.handles) == (None, {"CUDA_VISIBLE_DEVICES": "5,7"}, ())


def test_steps_side_by_side_run_on_their_own_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.steps import run_stage

    root = tmp_path / "w"
    root.mkdir()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=clean_environment(), check=True)
    (root / "params.yaml").write_text("version: 1\n")
    # Each waits until the other one has begun.
    wait = "for i in $(seq 300); do test -f A -a -f B && break; sleep 0.1; done"
    (root / "dvc.yaml").write_text(
        "stages:\n  train:\n    foreach:\n    - A\n    - B\n    do:\n"
        f"      cmd: echo $CUDA_VISIBLE_DEVICES > ${{item}}; {wait}; test -f A -a -f B\n"
        "      outs:\n      - ${item}\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    threads = [threading.Thread(target=run_stage.fn, args=(root, f"train@{name}")) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(root / name).read_text().strip() for name in "AB"} == {"5", "7"}
    with slot_of("train@A", Params()) as slot:
        assert slot.device == "5"
