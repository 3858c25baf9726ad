"""EWC: the penalty is zero at the old optimum, grows quadratically, and knows every domain's Fisher information."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from samcl_core.strategies import Context, State, Task, build_strategy
from samcl_core.strategies.ewc import Anchor, fisher_of
from samcl_core.tensors import tensor_bytes
from samcl_core.training import batch_loss


@pytest.fixture(scope="module")
def states(toy: ModuleType, tasks: tuple[Task, Task], context: Context) -> list[State]:
    return toy.learnt(build_strategy("ewc"), tasks, context)


def shifted(state: State, by: float) -> dict[str, torch.Tensor]:
    """The optimum moved along one fixed direction."""
    generator = torch.Generator().manual_seed(1)
    return {name: t + by * torch.randn(t.shape, generator=generator) for name, t in state.model.items()}


def test_the_penalty_is_zero_at_the_optimum_and_quadratic(
    states: list[State], toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    first = states[0]
    anchor = Anchor.of(first)
    assert float(anchor.penalty(first.model)) == 0.0
    one, two = (float(anchor.penalty(shifted(first, by))) for by in (0.25, 0.5))
    assert one > 0 and two == pytest.approx(4 * one, rel=1e-5)

    extra = build_strategy("ewc", weight=6.0).extra(first, tasks, context)
    batch = toy.batch_of(tasks[1].train[:2], context)
    assert float(extra.penalty(first.model, batch, None, None)) == 0.0
    assert float(extra.penalty(shifted(first, 0.25), batch, None, None)) == pytest.approx(3 * one, rel=1e-5)


def test_the_fisher_information_is_the_mean_square_of_single_samples_gradients(
    states: list[State], toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    first, samples = states[0], tasks[0].train
    found = Anchor.of(first).fisher
    names = list(first.model)

    def loss(*values: torch.Tensor, row: int) -> torch.Tensor:
        batch = toy.batch_of(samples[row : row + 1], context)
        hooks = context.adapter.hooks(dict(zip(names, values, strict=True)), batch.prompts)
        masks = context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)
        return batch_loss(masks, batch, context.options).total

    rows = [
        torch.autograd.functional.jacobian(lambda *v, row=row: loss(*v, row=row), tuple(first.model.values()))
        for row in range(len(samples))
    ]
    for place, name in enumerate(names):
        expected = torch.stack([row[place] for row in rows]).square().mean(0)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-10)
    assert sum(float(tensor.sum()) for tensor in found.values()) > 0

    # Not the square of the mean gradient, which is what one batch of all samples would give.
    mean = torch.stack([row[names.index("extra.upward_.weight")] for row in rows]).mean(0).square()
    assert float(found["extra.upward_.weight"].sum()) > 1.2 * float(mean.sum())


def test_two_domains_are_both_in_the_penalty(states: list[State], tasks: tuple[Task, Task], context: Context) -> None:
    first, last = states
    fishers = [fisher_of(state.model, task.train, context) for state, task in zip(states, tasks, strict=True)]
    for by in (0.0, 0.1, 1.0):
        theta = shifted(last, by)
        parts = [
            sum(
                float((fisher[name].double() * (theta[name] - state.model[name]).double().square()).sum())
                for name in theta
            )
            for fisher, state in zip(fishers, states, strict=True)
        ]
        assert float(Anchor.of(last).penalty(theta)) == pytest.approx(sum(parts), rel=1e-4, abs=1e-9)
        assert parts[0] > 0, "the first domain's part is not lost"
    assert last.memory_bytes == first.memory_bytes == 2 * first.model_bytes, "memory does not grow with the domains"


def test_an_anchor_without_information_stays_finite() -> None:
    nothing = {"a": torch.zeros(2)}
    anchor = Anchor(nothing, {"a": torch.ones(2)}).added(nothing, {"a": torch.full((2,), 5.0)})
    assert float(anchor.penalty({"a": torch.full((2,), 9.0)})) == 0.0 and anchor.offset == 0.0


def test_a_large_weight_holds_the_module_and_weight_zero_is_naive(
    states: list[State], tasks: tuple[Task, Task], context: Context
) -> None:
    first = states[0]
    naive = build_strategy("naive").learn(first, tasks, context)
    free = build_strategy("ewc", weight=0.0).learn(first, tasks, context)
    assert tensor_bytes(free.model) == tensor_bytes(naive.model)
    held = build_strategy("ewc", weight=1e6).learn(first, tasks, context)
    moved = [float(Anchor.of(first).penalty(state.model)) for state in (naive, held)]
    assert moved[1] < 0.1 * moved[0]
