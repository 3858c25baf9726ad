"""Results made by threads in advance are those that would be made one by one."""

from __future__ import annotations

import threading
import time

import pytest

from samcl_core.inference.ahead import in_advance


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_order(num_threads: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_advance(make, range(20), num_threads)) == [item * item for item in range(20)]


def test_threads_are_no_further_ahead_than_asked() -> None:
    started, lock = [], threading.Lock()

    def make(item: int) -> int:
        with lock:
            started.append(item)
        return item

    results = in_advance(make, range(50), 2)
    for taken in range(10):
        assert next(results) == taken
        time.sleep(0.005)
        assert max(started) <= taken + 2
    results.close()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_what_is_raised_is_raised_in_its_place(num_threads: int) -> None:
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    results = in_advance(make, range(6), num_threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)
