from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from samcl_core.config import SelectorParams
from samcl_core.errors import BankError, IntegrityError
from samcl_core.selectors import (
    GaussianSelector,
    MlpSelector,
    empty_state,
    fit_selector,
    fit_state,
    load_selector,
    load_state,
)
from samcl_core.selectors.statistics import FixedPoint, Statistics

Draw = Callable[..., Tensor]
PARAMS = SelectorParams(kind="gaussian")


def test_picks_the_nearest_class_and_rejects_strangers(draw: Draw) -> None:
    learnt = {name: draw(k, 60) for k, name in enumerate("abc")}
    selector = fit_selector(PARAMS, learnt, {"nature": draw(3, 60)}, 0)
    assert isinstance(selector, GaussianSelector) and selector.domains == ("a", "b", "c")
    for k in range(3):
        choice = selector.choose(draw(k, 200, seed=1))
        assert (choice.index == k).float().mean() > 0.95
        assert ((choice.confidence >= 0) & (choice.confidence <= 1)).all()
    assert (selector.choose(draw(3, 200, seed=1)).index == -1).float().mean() > 0.95


def test_strangers_are_novel_with_enough_images(draw: Draw) -> None:
    selector = fit_selector(PARAMS, {f"d{k}": draw(k, 200, dim=64) for k in range(3)}, {}, 0)
    assert (selector.choose(draw(6, 200, seed=1, dim=64)).novelty > 1).float().mean() > 0.95
    own = torch.cat([selector.choose(draw(k, 300, seed=1, dim=64)).novelty for k in range(3)])
    assert (own <= 1).float().mean() > 0.97


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_a_handful_of_images_does_not_reject_everything(draw: Draw, num: int) -> None:
    selector = fit_selector(PARAMS, {"a": draw(0, num), "b": draw(1, num)}, {}, 0)
    for k in range(2):
        assert (selector.choose(draw(k, 100, seed=1)).index >= 0).float().mean() > 0.9


def test_order_of_arrival_does_not_change_a_bit(draw: Draw) -> None:
    classes = {name: draw(k, 17 + k) for k, name in enumerate("abcd")}
    results = []
    for order in itertools.permutations(classes):
        state = empty_state(PARAMS)
        for name in order:
            state = state.added(name, classes[name], seed=0, is_natural=name == "d")
        values, tensors = fit_state(state, PARAMS, 0).state()
        means = dict(zip([*values["domains"], *values["natural"]], tensors["means"], strict=True))
        stored = state.state()[1]
        results.append((values["thresholds"], tensors["whiten"], means, stored))
    limits, whiten, means, stored = results[0]
    for other in results[1:]:
        assert other[0] == limits
        assert torch.equal(other[1], whiten)
        assert all(torch.equal(other[2][name], means[name]) for name in means)
        assert all(torch.equal(other[3][name], stored[name]) for name in stored)


def test_statistics_are_exact(draw: Draw) -> None:
    state = empty_state(PARAMS)
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for k, name in enumerate("abc"):
        rows = draw(k, 20).double()
        expected += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        state = state.added(name, rows, seed=0)
    assert isinstance(state, Statistics) and state.scatter is not None
    torch.testing.assert_close(state.scatter.matrix(16), expected, rtol=1e-12, atol=1e-12)


def test_state_does_not_grow_with_the_images_and_holds_none(draw: Draw) -> None:
    sizes = []
    for num in (40, 400):
        state = empty_state(PARAMS).added("a", draw(0, num), seed=0)
        tensors = state.state()[1]
        sizes.append({name: tensor.nbytes for name, tensor in tensors.items()})
        rows = draw(0, num)
        for tensor in tensors.values():
            if tensor.ndim == 2 and tensor.shape[1] == 16:
                assert torch.cdist(tensor.float(), rows).min() > 1e-3
    assert sizes[0] == sizes[1]


def test_state_round_trip(draw: Draw) -> None:
    state = empty_state(PARAMS).added("n", draw(3, 9), seed=0, is_natural=True).added("a", draw(0, 9), seed=0)
    again = load_state(*state.state())
    left, right = fit_state(state, PARAMS, 0).state(), fit_state(again, PARAMS, 0).state()
    assert left[0] == right[0]
    assert all(torch.equal(left[1][name], right[1][name]) for name in left[1])
    grown = [s.added("b", draw(1, 5), seed=0).state() for s in (state, again)]
    assert grown[0][0] == grown[1][0]
    assert all(torch.equal(grown[0][1][name], grown[1][1][name]) for name in grown[0][1])


def test_fallback_never_has_no_gate(draw: Draw) -> None:
    selector = fit_selector(SelectorParams(kind="gaussian", fallback="never"), {"a": draw(0, 50)}, {}, 0)
    choice = selector.choose(draw(9, 20) * 50)
    assert (choice.index == 0).all() and (choice.novelty == 0).all()
    assert (load_selector(*selector.state()).choose(draw(9, 20) * 50).index == 0).all()


def test_identical_embeddings_leave_everything_open(draw: Draw) -> None:
    selector = fit_selector(PARAMS, {"a": torch.zeros(4, 3), "b": torch.ones(4, 3)}, {}, 0)
    assert selector.choose(torch.tensor([[0.1, 0, 0], [0.9, 1, 1]])).index.tolist() == [0, 1]
    assert set(selector.state()[0]["thresholds"].values()) == {None}
    again = load_selector(*selector.state())
    assert again.choose(torch.tensor([[0.1, 0, 0]])).novelty.tolist() == [0.0]


def test_fixed_point_keeps_small_and_large_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1.0, 1e6, 1e11):
        matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64) * scale
        matrix = matrix + matrix.T
        torch.testing.assert_close(FixedPoint.of(matrix).matrix(6), matrix, rtol=1e-11, atol=0)
    with pytest.raises(BankError, match="2\\^41"):
        FixedPoint.of(torch.full((2, 2), 1e13, dtype=torch.float64))


def test_buffers_keep_a_seeded_choice_whatever_else_arrives(draw: Draw) -> None:
    params = SelectorParams(buffer_size=5)
    rows = draw(0, 50)
    first = empty_state(params).added("a", rows, seed=0)
    second = empty_state(params).added("b", draw(1, 50), seed=0).added("a", rows, seed=0)
    other = empty_state(params).added("a", rows, seed=1)
    kept = first.state()[1]["buffer.a"]
    assert kept.shape == (5, 16) and kept.dtype == torch.float32
    assert all(bool((rows == row).all(1).any()) for row in kept)
    assert torch.equal(kept, second.state()[1]["buffer.a"])
    assert not torch.equal(kept, other.state()[1]["buffer.a"])
    small = empty_state(params).added("a", rows[:3].double(), seed=0).state()[1]["buffer.a"]
    assert torch.equal(small, rows[:3])


def test_buffer_round_trip(draw: Draw) -> None:
    params = SelectorParams(epochs=1, min_steps=0)
    state = empty_state(params).added("n", draw(2, 4), seed=0, is_natural=True).added("a", draw(0, 4), seed=0)
    again = load_state(*state.state())
    left, right = fit_state(state, params, 0), fit_state(again, params, 0)
    assert isinstance(left, MlpSelector) and left.domains == ("a",)
    assert all(torch.equal(left.state()[1][name], right.state()[1][name]) for name in left.state()[1])


def test_another_kind_cannot_go_on_with_the_state(draw: Draw) -> None:
    state = empty_state(PARAMS).added("a", draw(0, 4), seed=0)
    with pytest.raises(BankError, match=r"'gaussian' selector needs, params\.yaml asks for 'mlp'"):
        fit_state(state, SelectorParams(), 0)


def test_states_refuse_classes_that_do_not_fit(draw: Draw) -> None:
    for params in (PARAMS, SelectorParams()):
        state = empty_state(params).added("a", draw(0, 4), seed=0)
        with pytest.raises(BankError, match="already knows 'a'"):
            state.added("a", draw(0, 4), seed=0)
        with pytest.raises(BankError, match="width 8, expected 16"):
            state.added("b", torch.zeros(2, 8), seed=0)


def test_damaged_states_are_refused(draw: Draw) -> None:
    for params in (PARAMS, SelectorParams()):
        selector = fit_selector(params, {"a": draw(0, 9)}, {"n": draw(1, 9)}, 0)
        values, tensors = selector.state()
        with pytest.raises((BankError, IntegrityError)):
            load_selector(values, {name: tensors[name] for name in list(tensors)[1:]})
        with pytest.raises((BankError, IntegrityError)):
            load_selector({**values, "domains": ["a", "b"]}, tensors)
        with pytest.raises(BankError, match="kind is 'oracle'"):
            load_selector({**values, "kind": "oracle"}, tensors)
        state = empty_state(params).added("a", draw(0, 9), seed=0)
        with pytest.raises(IntegrityError, match="not whole"):
            load_state(state.state()[0], {})
    with pytest.raises(BankError, match="kind None"):
        load_state({}, {})
