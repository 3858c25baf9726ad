"""Graphs of work: order, width, errors; and the processes that do it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from samcl_core.errors import SamclError, UsageError
from tasks.schedule import Done, run_graph
from tasks.workers import Workers, worker_pool


@dataclass(frozen=True)
class Piece:
    id: str
    needs: tuple[str, ...] = ()


DIAMOND = [Piece("a"), Piece("b", ("a",)), Piece("c", ("a",)), Piece("d", ("b", "c")), Piece("e")]


class Threads:
    """Does every piece in a thread of its own and remembers when."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.events: list[tuple[str, str]] = []
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def start(self, piece: Piece, done: Done) -> None:
        threading.Thread(target=self._run, args=(piece.id, done)).start()

    def _run(self, name: str, done: Done) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.events.append(("begin", name))
        time.sleep(0.02)
        with self._lock:
            self._running -= 1
            self.events.append(("end", name))
        done(ValueError(name) if name in self.failing else None)


def test_everything_runs_after_what_it_needs() -> None:
    threads, seen = Threads(), []
    outcome = run_graph(DIAMOND, threads.start, 2, lambda outcome: seen.append(len(outcome.finished)))
    assert sorted(outcome.finished) == ["a", "b", "c", "d", "e"]
    assert (outcome.failed, outcome.blocked) == ({}, [])
    for piece in DIAMOND:
        for need in piece.needs:
            assert threads.events.index(("end", need)) < threads.events.index(("begin", piece.id))
    assert threads.most == 2
    assert seen == [1, 2, 3, 4, 5]


def test_one_at_a_time_keeps_the_order_of_the_plan() -> None:
    threads = Threads()
    assert run_graph(DIAMOND, threads.start, 1).finished == ["a", "b", "c", "d", "e"]
    assert threads.most == 1


def test_an_error_holds_up_only_what_needs_it() -> None:
    outcome = run_graph([*DIAMOND, Piece("f", ("d",))], Threads("b").start, 2)
    assert sorted(outcome.finished) == ["a", "c", "e"]
    assert {name: str(error) for name, error in outcome.failed.items()} == {"b": "b"}
    assert outcome.blocked == ["d", "f"]


@pytest.mark.parametrize(
    "pieces", [[Piece("a", ("b",)), Piece("b", ("a",))], [Piece("a", ("x",))], [Piece("a"), Piece("a")]]
)
def test_impossible_graphs_are_refused(pieces: list[Piece]) -> None:
    with pytest.raises(ValueError, match=r"circle|unique"):
        run_graph(pieces, Threads().start, 1)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Functions that workers can import."""
    (tmp_path / "samcl_worker_case.py").write_text(
        textwrap.dedent(
            """
            import os, pathlib, signal, time
            from samcl_core.errors import UsageError

            def double(number, progress):
                return 2 * number, os.getpid(), os.environ.get("OMP_NUM_THREADS")

            def report(heard, progress):
                progress("listening", 1, 2)
                while not pathlib.Path(heard).exists():
                    time.sleep(0.02)

            def refuse(number, progress):
                raise UsageError(f"number is {number}", hint="take another")

            def die(progress):
                os.kill(os.getpid(), signal.SIGKILL)

            def wait(path, progress):
                pathlib.Path(path).write_text(str(os.getpid()))
                time.sleep(600)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import samcl_worker_case

    yield samcl_worker_case
    del sys.modules["samcl_worker_case"]


def until(is_true: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_answer_report_fail_and_are_replaced(work: ModuleType, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    with worker_pool(1, threads=1) as workers:
        value, pid, threads = workers.run(work.double, 21)
        assert (value, threads) == (42, "1")
        assert pid != os.getpid()
        workers.run(work.report, str(heard), progress=lambda *report: heard.write_text(repr(report)))
        assert heard.read_text() == "('listening', 1, 2)"
        with pytest.raises(UsageError, match="number is 7") as caught:
            workers.run(work.refuse, 7)
        assert caught.value.hint == "take another"
        with pytest.raises(SamclError, match="ended without an answer"):
            workers.run(work.die)
        assert workers.run(work.double, 1)[1] != pid
    with pytest.raises(SamclError, match="nothing new is begun"):
        workers.run(work.double, 1)
    assert not psutil.pid_exists(pid)


def test_an_interrupt_kills_the_workers(work: ModuleType, tmp_path: Path) -> None:
    note, errors = tmp_path / "pid", []

    def run(workers: Workers) -> None:
        try:
            workers.run(work.wait, str(note))
        except SamclError as exc:
            errors.append(exc)

    with pytest.raises(KeyboardInterrupt), worker_pool(1) as workers:
        thread = threading.Thread(target=run, args=(workers,))
        thread.start()
        until(lambda: note.exists() and note.read_text())
        raise KeyboardInterrupt
    thread.join(30)
    assert len(errors) == 1
    until(lambda: not psutil.pid_exists(int(note.read_text())))


def test_workers_end_with_a_killed_parent(work: ModuleType, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = tmp_path / "parent.py"
    program.write_text(
        "import sys\nfrom tasks.workers import worker_pool\nimport samcl_worker_case\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as workers:\n        workers.run(samcl_worker_case.wait, sys.argv[1])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])}
    with subprocess.Popen([sys.executable, program, note], env=environment) as parent:
        until(lambda: note.exists() and note.read_text())
        parent.kill()
    until(lambda: not psutil.pid_exists(int(note.read_text())))
