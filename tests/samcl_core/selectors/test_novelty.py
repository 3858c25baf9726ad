from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from samcl_core.selectors import NoveltyGate
from samcl_core.selectors.novelty import held_out_bound, held_out_distance2
from samcl_core.selectors.shrinkage import MIN_INTENSITY, Shrunk, chi2_quantile, shrink, student_quantile

Draw = Callable[..., Tensor]


def scatter_of(rows: Tensor) -> tuple[Tensor, Tensor, float]:
    residuals = rows - rows.mean(0)
    return residuals, residuals.T @ residuals, float(residuals.square().sum(1).square().sum())


def test_shrinkage_is_ledoit_and_wolf() -> None:
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
        [3.0, 1, 1, 1, 0.2]
    )
    residuals, scatter, fourth = scatter_of(rows)
    shared = shrink(scatter, 20, 1, fourth)
    assert shared is not None
    sample = scatter / 20
    mu = sample.trace() / 5
    spread = (sample - mu * torch.eye(5)).square().sum()
    error = sum((torch.outer(r, r) - sample).square().sum() for r in residuals) / 20**2
    assert shared.intensity == pytest.approx(float(min(error, spread) / spread))
    covariance = (1 - shared.intensity) * scatter / 19
    covariance += shared.intensity * scatter.trace() / 19 / 5 * torch.eye(5)
    expected = (residuals @ torch.linalg.inv(covariance) * residuals).sum(1)
    torch.testing.assert_close(shared.distance2(residuals), expected)


def test_shrinkage_of_degenerate_input() -> None:
    assert shrink(torch.zeros(3, 3, dtype=torch.float64), 5, 1, 0.0) is None
    assert shrink(torch.eye(3, dtype=torch.float64), 2, 2, 0.0) is None
    line = torch.zeros(50, 3, dtype=torch.float64)
    line[:, 0] = torch.arange(50)
    _, scatter, fourth = scatter_of(line)
    shared = shrink(scatter, 50, 1, fourth)
    assert shared is not None and shared.intensity >= MIN_INTENSITY
    assert torch.isfinite(shared.whiten).all()


def test_held_out_distances_equal_really_leaving_each_one_out(draw: Draw) -> None:
    rows = draw(0, 12).double()
    residuals, scatter, fourth = scatter_of(rows)
    shared = shrink(scatter, 12, 1, fourth)
    assert shared is not None
    target = shared.intensity * scatter.trace() / shared.dof / 16 * torch.eye(16, dtype=torch.float64)
    expected = []
    for i in range(12):
        rest = torch.cat([rows[:i], rows[i + 1 :]])
        left = rest - rest.mean(0)
        covariance = (1 - shared.intensity) * left.T @ left / shared.dof + target
        away = rows[i] - rest.mean(0)
        expected.append(away @ torch.linalg.solve(covariance, away))
    torch.testing.assert_close(held_out_distance2(residuals, shared), torch.stack(expected))
    assert held_out_distance2(residuals[:1], shared).shape == (0,)


def test_unseen_images_are_farther_by_what_was_fitted_to_the_seen_ones() -> None:
    shared = Shrunk(torch.eye(4), 0.2, 20, 0.1)
    assert shared.scale == pytest.approx(0.04)
    assert shared.unseen(10.0) == pytest.approx(10 / (1 - 0.4)) == pytest.approx(10 + 4 / (1 - 0.4))
    whole, part = 4 / (1 - 0.4), 1 / (1 - 0.2)
    assert shared.unseen(10.0, 5.0) == pytest.approx(10 + part + (whole - part) / 5)
    assert shared.unseen(10.0, 0.0) == pytest.approx(10 + whole / 5)
    assert shared.unseen(10.0, 12.0) == shared.unseen(10.0)
    assert shared.unseen(100.0) == pytest.approx(400)


@pytest.mark.parametrize(
    ("quantile", "dof", "expected"),
    [(0.99, 2, 6.9646), (0.99, 3, 4.5407), (0.99, 5, 3.3649), (0.99, 30, 2.4573), (0.5, 7, 0.0), (0.9, 10, 1.3722)],
)
def test_student_quantiles(quantile: float, dof: int, expected: float) -> None:
    assert student_quantile(quantile, dof) == pytest.approx(expected, rel=0.025, abs=1e-9)


def test_student_quantile_needs_two_degrees_of_freedom() -> None:
    with pytest.raises(ValueError, match="dof is 1"):
        student_quantile(0.9, 1)


@pytest.mark.parametrize(("quantile", "dof", "expected"), [(0.99, 10, 23.209), (0.95, 3, 7.815), (0.99, 100, 135.807)])
def test_chi2_quantiles(quantile: float, dof: float, expected: float) -> None:
    assert chi2_quantile(quantile, dof) == pytest.approx(expected, rel=0.01)


def test_bound_with_enough_data_is_an_order_statistic() -> None:
    held_out = torch.arange(1, 200, dtype=torch.float64)
    assert held_out_bound(held_out, 0.9, held_out) == 180
    assert held_out_bound(held_out, 0.99, held_out) == 198


def test_bound_with_little_data_is_generous_and_shrinks() -> None:
    pool = torch.full((100,), 10.0, dtype=torch.float64)
    bounds = [held_out_bound(pool[:num], 0.99, pool) for num in (0, 1, 2, 3, 5, 10, 50)]
    assert bounds[0] > 30 and all(bound > 10 for bound in bounds)
    assert bounds[1:] == sorted(bounds[1:], reverse=True)


def test_copies_of_one_image_do_not_close_the_gate() -> None:
    pool = torch.full((200,), 10.0, dtype=torch.float64)
    assert held_out_bound(torch.zeros(200, dtype=torch.float64), 0.99, pool) >= 0.99


@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("num", [20, 100, 300])
def test_own_images_pass_at_the_asked_rate(draw: Draw, dim: int, num: int) -> None:
    classes = {f"d{k}": draw(k, num, dim=dim) for k in range(3)}
    gate = NoveltyGate.fit(classes, 0.95)
    assert gate is not None
    own = torch.cat([gate.novelty(draw(k, 400, seed=9, dim=dim)) for k in range(3)])
    assert 0.92 <= float((own <= 1).float().mean()) <= 1.0


def test_unknown_images_are_novel(draw: Draw) -> None:
    gate = NoveltyGate.fit({f"d{k}": draw(k, 100, dim=64) for k in range(3)}, 0.99)
    assert gate is not None
    novelty = gate.novelty(draw(6, 200, seed=9, dim=64))
    assert float((novelty > 1).float().mean()) > 0.95


@pytest.mark.parametrize("num", [2, 3, 4, 5])
def test_a_handful_of_images_does_not_reject_everything(draw: Draw, num: int) -> None:
    for dim in (8, 64, 256):
        gate = NoveltyGate.fit({"a": draw(0, num, dim=dim)}, 0.99)
        assert gate is not None
        assert float((gate.novelty(draw(0, 200, seed=9, dim=dim)) <= 1).float().mean()) > 0.95


def test_nothing_to_measure_with_leaves_the_gate_open(draw: Draw) -> None:
    assert NoveltyGate.fit({}, 0.99) is None
    assert NoveltyGate.fit({"a": draw(0, 1), "b": draw(1, 1)}, 0.99) is None
    assert NoveltyGate.fit({"a": torch.ones(9, 4)}, 0.99) is None


def test_thresholds_do_not_depend_on_the_order_of_classes(draw: Draw) -> None:
    classes = {f"d{k}": draw(k, 30) for k in range(3)}
    left = NoveltyGate.fit(classes, 0.99)
    right = NoveltyGate.fit(dict(reversed(classes.items())), 0.99)
    assert left is not None and right is not None
    assert left.limits(list(classes)) == right.limits(list(reversed(classes)))
    assert torch.equal(left.whiten, right.whiten)


def test_limits_are_json_values_and_come_back() -> None:
    gate = NoveltyGate(torch.zeros(2, 3), torch.eye(3), torch.tensor([1.5, math.inf]))
    limits = gate.limits(["a", "b"])
    assert limits == {"a": 1.5, "b": None}
    again = NoveltyGate.stored(gate.tensors(), limits, ["a", "b"])
    assert again.thresholds.tolist() == [1.5, math.inf]
    with pytest.raises(ValueError, match="not for 3 classes"):
        NoveltyGate.stored(gate.tensors(), {**limits, "c": 1.0}, ["a", "b", "c"])
    with pytest.raises(KeyError):
        NoveltyGate.stored(gate.tensors(), {"a": 1.0}, ["a", "b"])
