"""Small work on many files by several threads; decoding and hashing release the interpreter lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2

from samcl_core.progress import Progress

__all__ = ["map_files", "num_workers"]

_T = TypeVar("_T")
_R = TypeVar("_R")
_MAX_WORKERS = 8
_MAX_CHUNK = 16
_CHUNKS_EACH = 16


def num_workers() -> int:
    """Threads that work on files at a time: one a core that this process may use, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, cores)


def map_files(work: Callable[[_T], _R], items: Sequence[_T], progress: Progress, what: str) -> list[_R]:
    """``[work(item) for item in items]`` by threads: results in order, the first error raised, the rest not started."""
    results: list[_R] = []
    progress(what, 0, len(items))
    workers = num_workers()
    # Handing over every single result wakes this thread, which then takes the interpreter lock from the workers.
    size = max(1, min(_MAX_CHUNK, len(items) // (_CHUNKS_EACH * workers)))
    chunks = [items[at : at + size] for at in range(0, len(items), size)]
    with _one_thread_each():
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            for found in pool.map(lambda chunk: [work(item) for item in chunk], chunks):
                for result in found:
                    results.append(result)
                    progress(what, len(results), len(items))
        finally:
            pool.shutdown(cancel_futures=True)
    return results


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV shares one more pool of threads among its callers: here each caller has a core already."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
