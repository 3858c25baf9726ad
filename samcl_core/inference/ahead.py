"""Work done by threads ahead of whoever needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_advance"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_advance(make: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> Iterator[Result]:
    """``make(item)`` of each item, in order.

    Threads are ``num_threads`` results ahead, no further: that many and one wait in memory. With 0 threads each result
    is made when it is asked for. What ``make`` raises is raised here, in its place.
    """
    if num_threads == 0:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
