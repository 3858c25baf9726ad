"""The train stage in several processes of this machine: one rank each, in the stage's own process group.

They are started directly and not by ``torchrun``, whose workers get process groups of their own: whoever ends the
stage's group, as the pipeline does, ends these. As a program (``FOLDER ROOT DOMAIN``) this is one of the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from samcl_core.config import Params, parse_params
from samcl_core.errors import SamclError, TrainingError
from samcl_core.files import write_json
from samcl_core.progress import Progress, silent
from samcl_core.training.distributed import RENDEZVOUS, ProcessLost

__all__ = ["main", "train_together"]

_POLL_S = 0.1
_GRACE_S = 5.0


def train_together(root: Path, params: Params, domain: str, num: int, progress: Progress = silent) -> dict[str, Any]:
    """Run the train stage of ``domain`` in ``num`` processes; returns its summary.

    Raises:
        SamclError: a process failed; the error is the one of the process that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="samcl-train-") as name:
        folder = Path(name)
        write_json(folder / "params.json", params.model_dump(mode="json"))
        workers = [_start(folder, root, domain, rank, num) for rank in range(num)]
        try:
            codes = _follow(workers, folder / "progress", progress)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        if any(codes):
            _raise_first(folder, codes)
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary


def _start(folder: Path, root: Path, domain: str, rank: int, num: int) -> subprocess.Popen[bytes]:
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num)))
    environment = {
        RENDEZVOUS: (folder / "meeting").as_uri(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "OMP_NUM_THREADS": threads,
    }
    command = [sys.executable, "-m", "samcl_core.stages.train_processes", str(folder), str(root), domain]
    return subprocess.Popen(command, env=os.environ | environment, stdin=subprocess.DEVNULL)


def _follow(workers: Sequence[subprocess.Popen[bytes]], reports: Path, progress: Progress) -> list[int | None]:
    """Exit codes when all have ended, or some time after one failed: most of the time the others notice it."""
    seen, deadline = "", float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        if deadline == float("inf") and any(worker.returncode for worker in workers):
            deadline = time.monotonic() + _GRACE_S
        report = reports.read_text(encoding="utf-8") if reports.exists() else ""
        if report != seen:
            progress(*json.loads(report))
            seen = report
        time.sleep(_POLL_S)
    return [worker.poll() for worker in workers]


def _raise_first(folder: Path, codes: Sequence[int | None]) -> NoReturn:
    """Raise what failed first; that a process lost another one is no reason of its own."""
    errors = [(rank, folder / f"error-{rank}.json") for rank in range(len(codes))]
    told = [json.loads(path.read_text(encoding="utf-8")) for _, path in errors if path.exists()]
    reasons = sorted((error for error in told if not error["is_lost"]), key=lambda error: error["at"])
    silent_ones = [rank for rank, path in errors if codes[rank] and not path.exists()]
    if not reasons and silent_ones:
        raise TrainingError(
            f"process {silent_ones[0] + 1} of {len(codes)} ended with exit code {codes[silent_ones[0]]} and said "
            "nothing, expected it to finish the training",
            hint="look whether the machine ran out of memory; the same command continues at the last checkpoint",
        )
    first = (reasons or told)[0]
    error = TrainingError(first["message"], hint=first["hint"])
    error.exit_code = first["exit_code"]
    raise error from RuntimeError(first["traceback"])


def main(arguments: Sequence[str]) -> int:
    """Be one of the processes: ``FOLDER ROOT DOMAIN``; returns the exit code."""
    folder, root, domain = Path(arguments[0]), Path(arguments[1]), arguments[2]
    rank, started = int(os.environ["RANK"]), os.getppid()
    threading.Thread(target=_end_with, args=(started,), daemon=True).start()
    is_first, reports = rank == 0, folder / "progress"

    def report(what: str, done: int, total: int) -> None:
        beside = reports.with_suffix(".new")
        beside.write_text(json.dumps([what, done, total]), encoding="utf-8")
        beside.replace(reports)

    try:
        from samcl_core.stages.train import run

        params = parse_params(json.loads((folder / "params.json").read_text(encoding="utf-8")))
        summary = run(root, params, domain, report if is_first else silent)
        if is_first:
            write_json(folder / "summary.json", summary)
    except Exception as exc:
        values = {
            "message": exc.message if isinstance(exc, SamclError) else f"{type(exc).__name__}: {exc}",
            "hint": getattr(exc, "hint", ""),
            "exit_code": getattr(exc, "exit_code", 1),
            "is_lost": isinstance(exc, ProcessLost),
            "at": time.time(),
            "traceback": traceback.format_exc(),
        }
        write_json(folder / f"error-{rank}.json", values)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with(parent: int) -> None:
    """A process whose parent was killed alone has nobody to train for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    # Not through the interpreter's end: threads that wait for a lost process would hold it up.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
