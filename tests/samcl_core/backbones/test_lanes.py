"""Work that is shared among the threads of torch, one lane each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from samcl_core.backbones.lanes import in_lanes


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _seen(count: int) -> list[tuple[int, int]]:
    """For each item the thread that worked on it and torch's threads there; two items are in work at the same time."""
    together, seen = threading.Barrier(min(2, count), timeout=30), []

    def work(item: int) -> None:
        if item < 2:
            together.wait()
        seen.append((threading.get_ident(), torch.get_num_threads()))

    in_lanes(work, range(count))
    return seen


def test_items_run_beside_each_other_with_a_thread_each() -> None:
    seen = _seen(5)
    assert len(seen) == 5
    assert len({ident for ident, _ in seen}) == 2
    assert {num for _, num in seen} == {1}
    assert torch.get_num_threads() == 2


def test_a_single_item_has_all_threads() -> None:
    assert _seen(1) == [(threading.get_ident(), 2)]


def test_threads_that_begin_later_have_torch_s_own_number() -> None:
    _seen(4)
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2]


def test_the_first_error_is_raised() -> None:
    def work(item: int) -> None:
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        in_lanes(work, range(8))
    assert torch.get_num_threads() == 2


def test_gradients_are_off_and_inference_mode_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    modes: list[tuple[bool, bool]] = []

    def work(_: int) -> None:
        modes.append(((weight * 2).requires_grad, torch.is_inference_mode_enabled()))

    in_lanes(work, range(4))
    with torch.inference_mode():
        in_lanes(work, range(4))
    assert modes == [(False, False)] * 4 + [(False, True)] * 4
