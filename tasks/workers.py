"""Processes that compute for the tasks of one command, and end with it, however it ends."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from samcl_core.errors import SamclError
from samcl_core.progress import Progress, silent

__all__ = ["Workers", "num_cores", "worker_pool"]

T = TypeVar("T")

_SPAWN = multiprocessing.get_context("spawn")
_EVERY_S = 0.2
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPORTS: Any = None  # set once in each worker


def num_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of fresh processes. Threads call ``run`` and wait; as many calls as there are processes run at once.

    The processes start with the first call. Each ignores Ctrl-C, which its parent answers, and ends when the parent
    is gone, also by ``kill -9``.
    """

    def __init__(self, count: int, threads: int | None = None) -> None:
        """
        Args:
            count: processes, at least 1.
            threads: threads of torch and of the numeric libraries in each; ``None`` leaves them their default. With
                one thread the results do not depend on the number of processes or cores.
        """
        self._count = count
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._is_closed = False
        self._reports: Any = _SPAWN.Queue()
        self._reports.cancel_join_thread()
        self._listeners: dict[int, Progress] = {}
        self._keys = itertools.count()
        self._reader = threading.Thread(target=self._read_reports, name="reports of workers", daemon=True)
        self._reader.start()

    def run(self, function: Callable[..., T], *args: Any, progress: Progress = silent) -> T:
        """``function(*args, progress)`` in a worker; it and the values must be picklable.

        Raises:
            SamclError: the worker died, or the pool is closed. Errors of ``function`` come as they are.
        """
        key = next(self._keys)
        self._listeners[key] = progress
        pool = self._open_pool()
        try:
            return pool.submit(_call, key, function, args).result()
        except BrokenProcessPool as exc:
            self._give_up(pool)
            raise SamclError(
                "a worker process ended without an answer; the system may have ended it for its use of memory",
                hint="the same command continues; fewer --workers need less memory",
            ) from exc
        finally:
            self._listeners.pop(key, None)

    def close(self, *, is_killing: bool = False) -> None:
        """End the processes: after their work, or at once."""
        with self._lock:
            self._is_closed, pool = True, self._pool
        if pool is not None:
            if is_killing:
                _kill(pool)
            pool.shutdown(wait=True, cancel_futures=True)
        self._reader.join()
        self._reports.close()

    def _open_pool(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._is_closed:
                raise SamclError("the command is ending, nothing new is begun")
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._count, _SPAWN, initializer=_begin, initargs=(self._reports, self._threads)
                )
            return self._pool

    def _give_up(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken and not self._is_closed:
                self._pool = None
                broken.shutdown(wait=False, cancel_futures=True)

    def _read_reports(self) -> None:
        while not self._is_closed:
            with contextlib.suppress(queue.Empty, OSError, EOFError):
                key, what, done, total = self._reports.get(timeout=_EVERY_S)
                self._listeners.get(key, silent)(what, done, total)


def _kill(pool: ProcessPoolExecutor) -> None:
    # Python has a public way from 3.14 on.
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()


@contextmanager
def worker_pool(count: int, threads: int | None = None) -> Iterator[Workers]:
    """``Workers`` for a block; when it fails or is interrupted the processes are killed."""
    workers = Workers(count, threads)
    try:
        yield workers
    except BaseException:
        workers.close(is_killing=True)
        raise
    workers.close()


# In the worker --------------------------------------------------------------------------------------------------------


def _begin(reports: Any, threads: int | None) -> None:
    global _REPORTS
    _REPORTS = reports
    reports.cancel_join_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        # Read when the libraries are first imported, which no worker did yet.
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(key: int, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    last = -_EVERY_S

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            _REPORTS.put((key, what, done, total))

    return function(*args, report)
