"""Threads that work on files: results and progress in order, one error for all."""

from __future__ import annotations

import pytest

from samcl_core.domains.workers import map_files
from samcl_core.progress import silent


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_results_and_progress_come_in_order(count: int) -> None:
    told: list[int] = []

    results = map_files(lambda item: -item, range(count), lambda _, done, total: told.append(done), "counting")

    assert results == [-item for item in range(count)]
    assert told == list(range(count + 1))


def test_first_error_is_raised_and_the_rest_not_started() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if item in (3, 700):
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 3"):
        map_files(work, range(100_000), silent, "failing")
    assert len(started) < 100_000
