"""One helper runs every step: what it says, what it waits for, what it never leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from samcl_core.errors import SamclError
from tasks import dvc
from tasks.processes import clean_environment, read_record, write_record

pytestmark = pytest.mark.pipeline

PIPELINE = """
stages:
  copy:
    foreach: ${domains}
    do:
      cmd: bash step copy ${key}
      deps:
      - in/${key}
      params:
      - domains.${key}
      outs:
      - out/${key}:
          persist: true
  join:
    cmd: bash step join
    deps:
    - out
    outs:
    - all.txt
"""

STEP = """
if [ -f "behave/$1$2" ]; then . "behave/$1$2"; fi
if [ "$1" = copy ]; then mkdir -p "out/$2"; cp "in/$2" "out/$2/file"; else cat out/*/file > all.txt; fi
"""


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with two domains, copied for each test."""
    root = tmp_path_factory.mktemp("pattern")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=clean_environment(), check=True)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "step").write_text(STEP)
    (root / "params.yaml").write_text("domains:\n  A: {v: 1}\n  B: {v: 1}\n")
    (root / "behave").mkdir()
    (root / "in").mkdir()
    for name in "AB":
        (root / "in" / name).write_text(f"{name}\n")
    return root


@pytest.fixture
def root(pattern: Path, tmp_path: Path) -> Path:
    target = tmp_path / "w"
    subprocess.run(["cp", "-a", str(pattern), str(target)], check=True)
    return target


def behave(root: Path, step: str, script: str) -> None:
    (root / "behave" / step).write_text(textwrap.dedent(script))


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_ran_skipped_cached(root: Path) -> None:
    assert dvc.repro(root, "copy@A") == "ran"
    assert dvc.repro(root, "copy@A") == "skipped"
    assert dvc.repro(root, "join") == "ran"
    for text, join in (("new\n", "ran"), ("A\n", "cached")):
        (root / "in" / "A").write_text(text)
        assert dvc.repro(root, "copy@A") == "ran"  # what persists has no run cache
        assert dvc.repro(root, "join") == join
        assert (root / "all.txt").read_text() == text
    assert "copy@A" not in dvc.status(root)
    assert "copy@B" in dvc.status(root)
    digest = dvc.lock_digest(root, "copy@A", "out/A")
    assert digest is not None
    assert digest.endswith(".dir")
    assert dvc.lock_digest(root, "copy@A", "out/B") is None
    assert dvc.lock_digest(root, "copy@B", "out/B") is None


def test_single_item_leaves_upstream_alone(root: Path) -> None:
    dvc.repro(root, "copy@A")
    assert dvc.repro(root, "join") == "ran"
    assert (root / "all.txt").read_text() == "A\n"


def test_the_steps_own_error_comes_first(root: Path) -> None:
    behave(
        root,
        "copyA",
        """
        echo loading >&2
        echo "error: in/A: 2 problem(s)" >&2
        echo "  - one" >&2
        echo "  - two" >&2
        echo "next: look at in/A" >&2
        exit 2
        """,
    )
    with pytest.raises(dvc.StageFailed) as caught:
        dvc.repro(root, "copy@A")
    error = caught.value
    assert error.message.startswith("in/A: 2 problem(s)\n  - one\n  - two\n")
    assert error.hint == "look at in/A"
    assert error.exit_code == 2
    assert str(error.log) in error.message
    assert "loading" in error.log.read_text()
    assert "failed to reproduce 'copy@A'" in error.output


def test_a_failure_without_own_error_shows_the_tail(root: Path) -> None:
    behave(root, "copyA", "for n in $(seq 40); do echo line $n; done; exit 3")
    with pytest.raises(dvc.StageFailed, match="line 40") as caught:
        dvc.repro(root, "copy@A")
    assert caught.value.exit_code == 1
    assert "line 5\n" not in caught.value.message
    assert "line 5\n" in caught.value.log.read_text()


def test_an_unknown_target(root: Path) -> None:
    with pytest.raises(dvc.StageFailed, match="copy@Z"):
        dvc.repro(root, "copy@Z")


def test_a_failed_step_keeps_the_last_good_output(root: Path) -> None:
    dvc.repro(root, "copy@A")
    (root / "in" / "A").write_text("new\n")
    behave(root, "copyA", "exit 1")
    with pytest.raises(dvc.StageFailed):
        dvc.repro(root, "copy@A")
    assert (root / "out" / "A" / "file").read_text() == "A\n"


def test_progress_is_passed_on(root: Path) -> None:
    line = json.dumps({"what": "copying", "done": 1, "total": 2}).replace('"', '\\"')
    behave(root, "copyA", f'echo "{line}" >> "$SAMCL_PROGRESS_FILE"; printf half >> "$SAMCL_PROGRESS_FILE"; sleep 0.5')
    seen: list[tuple[str, int, int]] = []
    dvc.repro(root, "copy@A", on_progress=lambda *values: seen.append(values))
    assert seen == [("copying", 1, 2)]


def test_a_step_that_needs_busy_files_waits(root: Path) -> None:
    dvc.repro(root, "copy@A")
    behave(root, "copyB", "touch started; while [ ! -f go ]; do sleep 0.1; done")
    outcomes: dict[str, str] = {}

    def work(target: str) -> None:
        outcomes[target] = dvc.repro(root, target)

    slow = threading.Thread(target=work, args=("copy@B",))
    slow.start()
    wait_for((root / "started").exists)
    waiting = threading.Thread(target=work, args=("join",))
    waiting.start()
    log = root / ".samcl" / "logs" / "join.log"
    wait_for(lambda: log.exists() and "is busy" in log.read_text())
    (root / "go").touch()
    for thread in (slow, waiting):
        thread.join(60)
    assert outcomes == {"copy@B": "ran", "join": "ran"}
    assert (root / "all.txt").read_text() == "A\nB\n"


def test_busy_for_too_long_is_an_error(root: Path) -> None:
    behave(root, "copyA", "echo 'out is busy, it is being blocked by (PID 1)'; exit 1")
    with pytest.raises(dvc.StageFailed):
        dvc.repro(root, "copy@A")  # said by the step itself: never tried again
    assert (root / ".samcl" / "logs" / "copy@A.log").read_text().count("is busy") == 1


def test_an_interrupted_wait_ends_the_whole_group(root: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    behave(
        root,
        "copyA",
        """
        sleep 300 & echo $! > child; echo $$ > pid
        echo '{"what": "x", "done": 0, "total": 1}' >> "$SAMCL_PROGRESS_FILE"
        wait
        """,
    )
    with pytest.raises(KeyboardInterrupt):
        dvc.repro(root, "copy@A", on_progress=stop)
    assert not alive(int((root / "pid").read_text()))
    assert not alive(int((root / "child").read_text()))
    assert not (root / ".samcl" / "run" / "copy@A.json").exists()
    (root / "behave" / "copyA").unlink()
    assert dvc.repro(root, "copy@A") == "ran"


def start_and_kill(root: Path, *, also_dvc: bool) -> int:
    """Run copy@A in a command that is killed with its group left running; returns the pid of the step."""
    behave(root, "copyA", "echo $$ > pid; sleep 300")
    script = "import sys, pathlib, tasks.dvc as d; d.repro(pathlib.Path(sys.argv[1]), 'copy@A')"
    command = subprocess.Popen([sys.executable, "-c", script, str(root)])
    wait_for(lambda: (root / "pid").exists() and (root / "pid").read_text().strip() != "")
    command.send_signal(signal.SIGKILL)
    command.wait()
    record = read_record(root / ".samcl" / "run" / "copy@A.json")
    assert record is not None
    if also_dvc:
        os.kill(record["pid"], signal.SIGKILL)
        wait_for(lambda: not alive(record["pid"]))
    return int((root / "pid").read_text())


@pytest.mark.parametrize("also_dvc", [False, True])
def test_a_killed_run_leaves_nothing_that_writes_into_the_next(root: Path, also_dvc: bool) -> None:
    step = start_and_kill(root, also_dvc=also_dvc)
    assert alive(step)
    (root / "behave" / "copyA").unlink()
    if not also_dvc:
        assert dvc.end_leftovers(root) > 1
        assert not alive(step)
        assert set(dvc.status(root)) == {"copy@A", "copy@B", "join"}
    assert dvc.repro(root, "copy@A") == "ran"
    assert not alive(step)


def test_a_number_that_another_process_has_now_is_left_alone(root: Path) -> None:
    other = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        record = root / ".samcl" / "run" / "copy@A.json"
        write_record(record, other.pid, target="copy@A")
        values = json.loads(record.read_text())
        record.write_text(json.dumps(values | {"started": values["started"] - 1000}))
        assert dvc.repro(root, "copy@A") == "ran"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_step_that_another_command_runs_is_not_ended(root: Path) -> None:
    behave(root, "copyA", "echo $$ > pid; sleep 300")
    # A shell's background jobs ignore SIGINT, and so would what they start.
    script = """if True:
        import pathlib, signal, sys, tasks.dvc
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tasks.dvc.repro(pathlib.Path(sys.argv[1]), "copy@A")"""
    command = subprocess.Popen([sys.executable, "-c", script, str(root)])
    try:
        wait_for((root / "pid").exists)
        with pytest.raises(SamclError, match=rf"copy@A is being run by another command \(process {command.pid}\)"):
            dvc.repro(root, "copy@A")
        assert command.poll() is None
        # Files that it holds cannot be looked at, and its group is nobody's leftover.
        with pytest.raises(dvc.Busy, match="is busy"):
            dvc.status(root)
        assert dvc.end_leftovers(root) == 0
        assert command.poll() is None
    finally:
        command.send_signal(signal.SIGINT)
        command.wait(30)


def test_forget_stages(root: Path) -> None:
    dvc.repro(root, "copy@A")
    dvc.repro(root, "copy@B")
    before = dvc.lock_digest(root, "copy@B", "out/B")
    assert dvc.forget_stages(root, "A")
    assert not dvc.forget_stages(root, "A")
    assert dvc.lock_digest(root, "copy@A", "out/A") is None
    assert dvc.lock_digest(root, "copy@B", "out/B") == before
    assert set(dvc.status(root)) == {"copy@A", "join"}
