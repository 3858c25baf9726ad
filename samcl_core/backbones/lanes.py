"""Independent pieces of tensor work, one core each: small products gain less from sharing one between two cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_lanes"]

T = TypeVar("T")


def in_lanes(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Call ``work`` on every item, on as many threads as torch may use, which it shares among them; no gradients.

    What is computed for an item has to be independent of the others'. It does not depend on the number of threads: an
    item has torch's threads to itself only where there are fewer items than threads.

    Args:
        work: computes and stores the result for one item. Switches of the calling thread (autocast, profilers) do not
            reach it.
        items: the pieces, the largest first where they differ.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(items))
    if lanes < 2:
        with torch.no_grad():
            for item in items:
                work(item)
        return
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    shared = _Shared(items)

    def lane(_: int) -> None:
        with mode():
            for item in shared:
                work(item)

    try:
        for _ in _pool(lanes, threads // lanes).map(lane, range(lanes)):
            pass
    finally:
        # Threads that begin later take the number that was set last, and a lane has just set its own.
        torch.set_num_threads(threads)


class _Shared(Iterator[T]):
    """An iterator that threads share."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(lanes: int, threads: int) -> ThreadPoolExecutor:
    """Lanes of so many threads each. For each thread of Python, torch keeps a number of its own."""
    if (lanes, threads) not in _pools:
        _pools[lanes, threads] = ThreadPoolExecutor(lanes, "lane", _begin, (threads,))
    return _pools[lanes, threads]


def _begin(threads: int) -> None:
    torch.get_num_threads()  # the first question sets the number itself
    torch.set_num_threads(threads)


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pools.clear)
