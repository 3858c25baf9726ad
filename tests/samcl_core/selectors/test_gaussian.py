from __future__ import annotations

import itertools
import json
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
from samcl_core.selectors.statistics import NUM_AXES, Statistics

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
    fresh = torch.cat([classes["a"][:3], classes["d"][:3] + 0.1])
    results = []
    for order in itertools.permutations(classes):
        state = empty_state(PARAMS)
        for name in order:
            state = state.added(name, classes[name], seed=0, is_natural=name == "d")
            state = load_state(*state.state())
        selector = fit_state(state, PARAMS, 0)
        values, choice = selector.state()[0], selector.choose(fresh)
        answers = ["plain" if index < 0 else selector.domains[index] for index in choice.index.tolist()]
        results.append(((values["thresholds"], values["scale"], values["floor"], answers), choice, state.state()))
        assert results[-1][2][0]["classes"] == list(order)
    numbers, choice, (_, stored) = results[0]
    for other in results[1:]:
        assert other[0] == numbers
        assert torch.equal(other[1].novelty, choice.novelty) and torch.equal(other[1].confidence, choice.confidence)
        assert save(other[2][1]) == save(stored)


def test_a_new_class_leaves_the_rows_of_the_others_alone(draw: Draw) -> None:
    state = empty_state(PARAMS).added("m", draw(0, 30), seed=0).added("k", draw(1, 30), seed=0)
    after = state.added("l", draw(2, 30), seed=0)
    for name, tensor in after.state()[1].items():
        assert torch.equal(tensor[[0, 2]], state.state()[1][name])


def test_a_few_images_are_kept_as_good_as_exactly(draw: Draw) -> None:
    state = empty_state(PARAMS)
    expected = torch.zeros(64, 64, dtype=torch.float64)
    for k, name in enumerate("abc"):
        rows = draw(k, 17, dim=64).double()
        expected += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        state = state.added(name, rows, seed=0)
    assert isinstance(state, Statistics)
    found = state.scatter("cab")
    assert torch.equal(found, state.scatter("abc"))
    assert float((found - expected).norm() / expected.norm()) < 0.015
    assert float(found.trace()) == pytest.approx(float(expected.trace()), rel=1e-3)


def test_many_images_keep_their_axes_and_their_whole_variance(draw: Draw) -> None:
    rows = draw(0, 400, dim=64).double()
    state = empty_state(PARAMS).added("a", rows, seed=0)
    assert isinstance(state, Statistics)
    exact, found = torch.cov(rows.T) * 399, state.scatter("a")
    values, vectors = torch.linalg.eigh(exact)
    values[:-NUM_AXES] = values[:-NUM_AXES].mean()
    expected = vectors * values @ vectors.T
    assert float((found - expected).norm() / expected.norm()) < 0.015
    assert float(found.trace()) == pytest.approx(float(exact.trace()), rel=1e-3)


@pytest.mark.parametrize("dim", [96, 768])
def test_state_takes_a_fortieth_of_the_buffer(dim: int) -> None:
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
    assert sizes["gaussian"][1] <= 25 * dim + 200
    last = summaries[-1]
    assert isinstance(last, Statistics)
    assert all(25 * dim < last.class_bytes(name) <= 25 * dim + 160 for name in last.classes)
    assert abs(last.class_bytes("natural_images") - sizes["gaussian"][1]) <= 40
    assert 0 < last.shared_bytes <= 512


def test_six_classes_of_vit_b_fit_into_120_kb_with_their_selector() -> None:
    rows = torch.randn(6, 60, 768, generator=torch.Generator().manual_seed(0))
    state = empty_state(PARAMS)
    for k, name in enumerate(("natural_images", "polyp", "shadow", "lesion", "camouflage", "rail_defect")):
        state = state.added(name, rows[k] + k, seed=0, is_natural=k == 0)
    parts = (state.state(), fit_state(state, PARAMS, 0).state())
    assert sum(len(save(tensors)) + len(json_bytes(values, "part")) for values, tensors in parts) <= 120_000


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
    state = empty_state(PARAMS).added("a", draw(0, 50), seed=0)
    assert (load_selector(*selector.state(), state).choose(draw(9, 20) * 50).index == 0).all()


def test_identical_embeddings_leave_everything_open(draw: Draw) -> None:
    classes = {"a": torch.zeros(4, 3), "b": torch.ones(4, 3)}
    selector = fit_selector(PARAMS, classes, {}, 0)
    assert selector.choose(torch.tensor([[0.1, 0, 0], [0.9, 1, 1]])).index.tolist() == [0, 1]
    assert set(selector.state()[0]["thresholds"].values()) == {None}
    state = empty_state(PARAMS)
    for name, rows in classes.items():
        state = state.added(name, rows, seed=0)
    again = load_selector(*selector.state(), state)
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
    assert not state.state()[1]["rows"][:, 1:].any()
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


def test_own_images_pass_where_there_are_fewer_images_than_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 257).float() ** -0.5
    axes = [torch.linalg.qr(torch.randn(256, 256, generator=generator))[0] for _ in range(5)]
    means = 0.3 * torch.randn(5, 256, generator=generator)

    def sample(k: int, num: int) -> Tensor:
        return means[k] + (1 + 0.3 * k) * (torch.randn(num, 256, generator=generator) * spread) @ axes[k]

    selector = fit_selector(PARAMS, {f"d{k}": sample(k, 100) for k in range(4)}, {}, 0)
    for k in range(4):
        assert float((selector.choose(sample(k, 200)).index == k).float().mean()) >= 0.95
    assert float((selector.choose(sample(4, 200)).index == -1).float().mean()) >= 0.5


def test_axes_and_sketches_tell_the_moments_under_the_own_metric(draw: Draw) -> None:
    for num in (9, 200):
        rows = draw(0, num, dim=32).double()
        state = empty_state(PARAMS).added("a", rows, seed=0)
        assert isinstance(state, Statistics)
        covariance = torch.cov(rows.T)
        metric = torch.linalg.inv(covariance + 0.1 * covariance.trace() / 32 * torch.eye(32))
        whiten = torch.linalg.cholesky(metric).T
        moments = state.moments(["a"], whiten)
        seen = whiten @ covariance @ whiten.T
        assert float(moments.first) == pytest.approx(float(seen.trace()), rel=0.02)
        assert float(moments.second) == pytest.approx(float(seen.square().sum()), rel=0.05)
        largest = torch.linalg.eigvalsh(seen)[-NUM_AXES:].sum()
        assert float(moments.fitted) == pytest.approx(float(largest), rel=0.02)


def test_a_selector_loads_from_a_state_that_knows_more(draw: Draw) -> None:
    state = empty_state(PARAMS).added("n", draw(3, 30), seed=0, is_natural=True)
    for k, name in enumerate("ba"):
        state = state.added(name, draw(k, 30), seed=0)
    selector = fit_state(state, PARAMS, 0)
    values, tensors = selector.state()
    more = state.added("aa", draw(4, 30), seed=0)
    again = load_selector(json.loads(json.dumps(values)), tensors, load_state(*more.state()))
    assert again.domains == ("b", "a") and again.state() == (values, {})
    fresh = torch.cat([draw(k, 20, seed=1) for k in (0, 1, 3, 6)])
    left, right = selector.choose(fresh), again.choose(fresh)
    assert torch.equal(left.index, right.index) and torch.equal(left.novelty, right.novelty)
    assert torch.equal(left.confidence, right.confidence)


def test_stored_numbers_decide_and_not_the_formulas(draw: Draw) -> None:
    state = empty_state(PARAMS).added("a", draw(0, 30), seed=0).added("b", draw(1, 30), seed=0)
    values, _ = fit_state(state, PARAMS, 0).state()
    other = {**values, "scale": 0.0, "floor": 4.0, "thresholds": {"a": 2.0, "b": None}}
    fresh = draw(0, 5, seed=1)
    away = (fresh.double() - draw(0, 30).double().mean(0)).norm(dim=1) / 2
    choice = load_selector({**other, "domains": ["a"], "natural": []}, {}, state).choose(fresh)
    torch.testing.assert_close(choice.novelty.double(), away / 2, rtol=1e-5, atol=0)
    for broken in ({"floor": 0.0}, {"scale": -1.0}, {"floor": float("nan")}, {"scale": "x"}):
        with pytest.raises(IntegrityError, match="gaussian selector is not whole"):
            load_selector({**values, **broken}, {}, state)


def test_a_state_of_another_version_is_refused(draw: Draw) -> None:
    values, tensors = empty_state(PARAMS).added("a", draw(0, 4), seed=0).state()
    old = {
        "kind": "gaussian",
        "quantile": 0.99,
        "natural": [],
        "classes": [{"name": "a", "num": 4, "fourth": 1.0, "tail": 1.0}],
    }
    for changed in (old, {**values, "version": 2}, {**values, "version": 4}):
        with pytest.raises(IntegrityError, match=r"version (None|2|4), expected 3") as caught:
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
    alone = gate.distances(means[1:2])
    torch.testing.assert_close(gate.distances(means[:3])[1:2], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("apart", "close", "size"), [(30.0, 1.0, 10), (1e3, 1e-2, 4), (3.0, 1e-6, 4)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_to_many_classes_are_those_of_plain_differences(
    apart: float, close: float, size: int, offset: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(100, 1, 48, generator=generator, dtype=torch.float64) * apart
    inside = close * torch.randn(100, size, 48, generator=generator, dtype=torch.float64)
    means = (groups + inside).flatten(0, 1) + offset
    axes = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64))[0]
    spread = torch.logspace(0, -2, 48, dtype=torch.float64)[:, None]
    gate = NoveltyGate(means, spread * axes, torch.ones(len(means)))
    rows = means[::8] + close * torch.randn(len(means[::8]), 48, generator=generator)
    whitened = (rows[:, None] - means) @ gate.whiten.T
    expected = whitened.norm(dim=2)
    found = gate.distances(rows)
    deciding = expected.topk(4, largest=False).indices
    torch.testing.assert_close(found.gather(1, deciding), expected.gather(1, deciding), rtol=1e-9, atol=0)
    assert torch.equal(found.argmin(1), expected.argmin(1))
    # All others are known to single precision, of squares as large as the classes lie apart.
    largest = expected.square().amax()
    torch.testing.assert_close(found.square(), expected.square(), rtol=0, atol=float(largest) * 1e-5)
    one = torch.cat([gate.distances(row[None]) for row in rows[:5]])
    torch.testing.assert_close(one.gather(1, deciding[:5]), found[:5].gather(1, deciding[:5]), rtol=1e-9, atol=0)


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
        state = empty_state(params).added("n", draw(1, 9), seed=0, is_natural=True).added("a", draw(0, 9), seed=0)
        values, tensors = fit_state(state, params, 0).state()
        for missing in list(tensors)[:1]:
            with pytest.raises(BankError):
                load_selector(values, {name: tensors[name] for name in tensors if name != missing}, state)
        with pytest.raises((BankError, IntegrityError)):
            load_selector({**values, "domains": ["a", "b"]}, tensors, state)
        with pytest.raises(BankError, match="kind is 'oracle'"):
            load_selector({**values, "kind": "oracle"}, tensors, state)
        with pytest.raises(IntegrityError, match="not whole"):
            load_state(state.state()[0], {})
    with pytest.raises(BankError, match="kind None"):
        load_state({}, {})


def test_a_gaussian_selector_needs_its_state(draw: Draw) -> None:
    values, tensors = fit_selector(PARAMS, {"a": draw(0, 9)}, {}, 0).state()
    for state in (None, empty_state(SelectorParams()), empty_state(PARAMS).added("b", draw(1, 9), seed=0)):
        with pytest.raises(IntegrityError, match="gaussian selector is not whole"):
            load_selector(values, tensors, state)
