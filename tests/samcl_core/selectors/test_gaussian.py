from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from samcl_core.bank.records import json_bytes
from samcl_core.config import SelectorParams
from samcl_core.errors import BankError, IntegrityError
from samcl_core.files import canonical_json
from samcl_core.selectors import (
    GaussianSelector,
    MlpSelector,
    NoveltyGate,
    empty_state,
    fit_selector,
    fit_state,
    load_selector,
    load_state,
)
from samcl_core.selectors.buffers import Buffers
from samcl_core.selectors.statistics import Statistics

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
    sizes = {"a": 17, "b": 1, "c": 2, "d": 40}
    classes = {name: draw(k, num) * 10.0 ** (3 * k - 3) for k, (name, num) in enumerate(sizes.items())}
    results = []
    for order in itertools.permutations(classes):
        state = empty_state(PARAMS)
        for name in order:
            state = state.added(name, classes[name], seed=0, is_natural=name == "d")
        values, tensors = fit_state(state, PARAMS, 0).state()
        means = dict(zip([*values["domains"], *values["natural"]], tensors["means"], strict=True))
        results.append((values["thresholds"], tensors["whiten"], means, state.state()))
        assert results[-1][3][0]["classes"] == list(order)
    limits, whiten, means, (_, stored) = results[0]
    assert sum(name.startswith("scatter.") for name in stored) > 1
    for other in results[1:]:
        assert other[0] == limits
        assert torch.equal(other[1], whiten)
        assert all(torch.equal(other[2][name], means[name]) for name in means)
        assert save(other[3][1]) == save(stored)


def test_statistics_are_exact_to_a_billionth(draw: Draw) -> None:
    state = empty_state(PARAMS)
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for k, name in enumerate("abc"):
        rows = draw(k, 20).double()
        expected += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        state = state.added(name, rows, seed=0)
    assert isinstance(state, Statistics) and state.scatter is not None
    error = (state.scatter.matrix() - expected).abs().max()
    assert error <= 3 * 2.0**-33 and error <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("dim", [96, 768])
def test_state_takes_a_hundredth_of_the_buffer(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(300, dim, generator=generator) for _ in range(2)]
    summaries, buffers = [empty_state(PARAMS)], [empty_state(SelectorParams(buffer_size=300))]
    for states in (summaries, buffers):
        states.append(states[-1].added("lesion_dermoscopy", rows[0], seed=0))
        states.append(states[-1].added("natural_images", rows[1], seed=0, is_natural=True))
    sizes = {}
    for kind, states in (("gaussian", summaries), ("mlp", buffers)):
        stored = [len(save(s.state()[1])) + len(json_bytes(s.state()[0], "state")) for s in states]
        sizes[kind] = [stored[k + 1] - stored[k] for k in range(2)]
        # A bank's record is indented and nested, this sum is neither.
        for state in states[1:]:
            exact = len(save(state.state()[1])) + len(canonical_json(state.state()[0]).encode())
            assert sum(map(state.class_bytes, state.classes)) + state.shared_bytes == exact
    assert 1200 * dim <= sizes["mlp"][1] <= 1200 * dim + 300
    assert sizes["gaussian"][1] <= 12 * dim
    last = summaries[-1]
    assert isinstance(last, Statistics)
    assert all(11 * dim < last.class_bytes(name) <= 12 * dim for name in last.classes)
    assert abs(last.class_bytes("natural_images") - sizes["gaussian"][1]) <= 40
    assert last.shared_bytes <= 4 * dim * (dim + 1) + 1024


def test_buffers_tell_their_bytes(draw: Draw) -> None:
    state = empty_state(SelectorParams(buffer_size=5)).added("a", draw(0, 50), seed=0)
    assert isinstance(state, Buffers)
    assert state.class_bytes("a") == 5 * 16 * 4 + len('{"name":"a","num":5}')
    assert 0 < state.shared_bytes < 300


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


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_embeddings_of_any_magnitude_give_the_same_answers(draw: Draw, scale: float) -> None:
    learnt = {name: draw(k, 60).double() for k, name in enumerate("abc")}
    fresh = torch.cat([draw(k, 50, seed=1) for k in (0, 1, 2, 6)]).double()
    plain = fit_selector(PARAMS, learnt, {}, 0).choose(fresh)
    scaled = fit_selector(PARAMS, {name: rows * scale for name, rows in learnt.items()}, {}, 0).choose(fresh * scale)
    assert torch.equal(scaled.index, plain.index)
    torch.testing.assert_close(scaled.novelty, plain.novelty, rtol=0.02, atol=0)


def test_huge_embeddings_are_refused() -> None:
    with pytest.raises(BankError, match=r"1e\+20, expected values up to 2\^60"):
        empty_state(PARAMS).added("a", torch.full((2, 4), 1e20), seed=0)


def test_rounding_is_no_spread() -> None:
    copies = torch.full((7, 4), 0.1, dtype=torch.float64)
    copies[0] += 1e-16
    state = empty_state(PARAMS).added("a", copies, seed=0)
    assert state.state()[0]["levels"] == []
    assert set(fit_state(state, PARAMS, 0).state()[0]["thresholds"].values()) == {None}
    again = load_state(*state.state())
    assert fit_state(again, PARAMS, 0).choose(torch.zeros(1, 4)).index.tolist() == [0]


def unlike_classes(num: int, dim: int, seed: int) -> Callable[[int, int, int], Tensor]:
    """Normal classes with axes of their own, spreads from 1 to 27, and a third of the variances down to 1e-6."""
    world = torch.Generator().manual_seed(seed)
    axes = [torch.linalg.qr(torch.randn(dim, dim, generator=world))[0] for _ in range(num)]
    means = torch.randn(num, dim, generator=world) * 30

    def sample(k: int, count: int, draw_seed: int) -> Tensor:
        own = torch.Generator().manual_seed(1000 * draw_seed + k)
        spread = 3.0 ** (k % 4) * torch.logspace(0, -(1 + k % 3), dim)[:, None]
        return means[k] + torch.randn(count, dim, generator=own) @ (spread * axes[k])

    return sample


@pytest.mark.parametrize("num_classes", [1, 6])
def test_own_images_pass_at_the_asked_rate_whatever_the_spread(num_classes: int) -> None:
    params = SelectorParams(kind="gaussian", novelty_quantile=0.95)
    rates = []
    for seed in range(3):
        sample = unlike_classes(num_classes, 32, seed)
        selector = fit_selector(params, {f"d{k}": sample(k, 300, 1) for k in range(num_classes)}, {}, 0)
        for k in range(num_classes):
            rates.append(float((selector.choose(sample(k, 400, 2)).index != k).float().mean()))
    assert 0.01 <= sum(rates) / len(rates) <= 0.08
    assert max(rates) <= 0.2


def test_a_sketch_tells_the_trace_under_its_own_metric_exactly(draw: Draw) -> None:
    for num in (9, 200):
        rows = draw(0, num, dim=32).double()
        state = empty_state(PARAMS).added("a", rows, seed=0)
        assert isinstance(state, Statistics)
        sketch = state.sketches(["a"])[0]
        covariance = torch.cov(rows.T)
        metric = torch.linalg.inv(covariance + 0.1 * covariance.trace() / 32 * torch.eye(32))
        expected = float((metric @ covariance).trace())
        found = (sketch @ metric * sketch).sum(1)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0.02, atol=0)


def test_a_state_of_another_version_is_refused(draw: Draw) -> None:
    values, tensors = empty_state(PARAMS).added("a", draw(0, 4), seed=0).state()
    old = {
        "kind": "gaussian",
        "quantile": 0.99,
        "natural": [],
        "classes": [{"name": "a", "num": 4, "fourth": 1.0, "tail": 1.0}],
    }
    for changed in (old, {**values, "version": 3}):
        with pytest.raises(IntegrityError, match=r"version (None|3), expected 2") as caught:
            load_state(changed, tensors)
        assert "dvc repro" in caught.value.hint
    for name, tensor in tensors.items():
        for wrong in (tensor[..., :-1].clone(), tensor.to(torch.float16)):
            with pytest.raises(IntegrityError, match="not whole"):
                load_state(values, {**tensors, name: wrong})


def test_a_thousand_classes_are_told_apart() -> None:
    means = torch.randn(1000, 24, generator=torch.Generator().manual_seed(0)) * 9
    gate = NoveltyGate(means, torch.eye(24), torch.ones(1000))
    far = means.double() + 1e6
    moved = NoveltyGate(far, torch.eye(24), torch.ones(1000))
    rows = far[::50] + 1e-3
    assert moved.distances(rows).argmin(1).tolist() == list(range(0, 1000, 50))
    torch.testing.assert_close(
        moved.distances(rows).amin(1), torch.full((20,), 1e-3 * 24**0.5).double(), rtol=1e-5, atol=0
    )
    assert torch.equal(gate.distances(means[:3])[1:2], gate.distances(means[1:2]))


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
