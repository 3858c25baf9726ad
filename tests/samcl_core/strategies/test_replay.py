"""ER and DER: what is stored, and what each step replays."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from samcl_core.strategies import Context, State, Task, build_strategy
from samcl_core.strategies.keeping import picked
from samcl_core.tensors import tensor_bytes
from samcl_core.training import batch_loss, box_prompts


def stored_bytes(task: Task, ids: tuple[str, ...]) -> int:
    samples = [sample for sample in task.train if sample.id in ids]
    return sum(path.stat().st_size for sample in samples for path in (sample.image, sample.mask))


@pytest.mark.parametrize("name", ["er", "der"])
def test_some_samples_of_each_domain_are_stored(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    first, last = toy.learnt(build_strategy(name, buffer_size=2), tasks, context)
    assert list(first.kept) == ["disc"] and list(last.kept) == ["disc", "ground"]
    assert first.kept["disc"] == last.kept["disc"] and len(first.kept["disc"]) == len(last.kept["ground"]) == 2
    assert first.kept_bytes == stored_bytes(tasks[0], first.kept["disc"]) > 0
    assert last.kept_bytes == first.kept_bytes + stored_bytes(tasks[1], last.kept["ground"])
    assert last.memory_bytes == last.kept_bytes + sum(tensor.nbytes for tensor in last.memory.values())
    everything = build_strategy(name, buffer_size=50).learn(None, tasks[:1], context)
    assert everything.kept["disc"] == tuple(sample.id for sample in tasks[0].train)


def test_the_draw_depends_on_the_seed_and_not_on_the_order(tasks: tuple[Task, Task]) -> None:
    task = tasks[0]
    drawn = picked(task, 3, 0)
    assert picked(Task(task.name, task.train[::-1]), 3, 0) == drawn
    assert len({picked(task, 3, seed) for seed in range(8)}) > 1


@pytest.mark.parametrize("name", ["er", "der"])
def test_only_stored_samples_of_earlier_domains_are_read(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy = build_strategy(name, buffer_size=2)
    first = strategy.learn(None, tasks[:1], context)
    earlier = toy.guarded(tasks[0], first.kept["disc"])
    found = strategy.learn(first, (earlier, tasks[1]), context)
    assert tensor_bytes(found.model) == tensor_bytes(strategy.learn(first, tasks, context).model)
    naive = build_strategy("naive").learn(first, tasks, context)
    assert tensor_bytes(found.model) != tensor_bytes(naive.model)


@pytest.mark.parametrize(("frac", "num_new", "num_replayed"), [(0.5, 4, 4), (0.5, 2, 2), (0.25, 6, 2), (0.75, 2, 6)])
def test_er_replays_the_stated_share_of_every_batch(
    frac: float, num_new: int, num_replayed: int, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy = build_strategy("er", buffer_size=3, replay_frac=frac)
    ids = tuple(sample.id for sample in tasks[0].train[:3])
    extra = strategy.extra(State(("disc",), {}, kept={"disc": ids}), tasks, context)
    new = list(tasks[1].train[:num_new])
    seen = set()
    for step in range(10):
        chosen = extra.chosen(new, step)
        assert list(chosen[:num_new]) == new and len(chosen) == num_new + num_replayed
        assert num_replayed / len(chosen) == frac
        replayed = chosen[num_new:]
        assert all(sample in tasks[0].train[:3] for sample in replayed)
        seen |= {sample.id for sample in replayed}
        assert extra.chosen(new, step) == chosen, "the same step draws the same"
    assert seen == set(ids)


def test_er_replays_all_earlier_domains(tasks: tuple[Task, Task], context: Context) -> None:
    kept = {task.name: tuple(sample.id for sample in task.train[:2]) for task in tasks}
    third = Task("third", tasks[0].train)
    extra = build_strategy("er").extra(State(("disc", "ground"), {}, kept=kept), (*tasks, third), context)
    stored = {sample.image for task in tasks for sample in task.train[:2]}
    for step in range(3):
        assert {sample.image for sample in extra.chosen(third.train[:4], step)[4:]} == stored


def test_der_keeps_the_answers_of_the_time_of_storing(
    toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    first, last = toy.learnt(build_strategy("der", buffer_size=3), tasks, context)
    for state, task in ((first, tasks[0]), (last, tasks[1])):
        samples = [sample for sample in task.train if sample.id in state.kept[task.name]]
        batch = toy.batch_of(samples, context)
        hooks = context.adapter.hooks(state.model, batch.prompts)
        answered = context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True).logits
        torch.testing.assert_close(state.memory[f"logits/{task.name}"], answered)
    assert torch.equal(last.memory["logits/disc"], first.memory["logits/disc"]), "later learning leaves them alone"
    assert last.memory["logits/disc"].shape == (3, 1, 32, 32)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_der_adds_both_terms_on_stored_samples(
    beta: float, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy = build_strategy("der", alpha=0.3, beta=beta, buffer_size=2)
    first = strategy.learn(None, tasks[:1], context)
    extra = strategy.extra(first, tasks, context)
    batch = toy.batch_of(tasks[1].train[:2], context)
    asked = []

    def forward(tensors, batch):
        asked.append(batch)
        hooks = context.adapter.hooks(tensors, batch.prompts)
        return context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)

    moved = {name: tensor + 0.5 for name, tensor in first.model.items()}
    found = float(extra.penalty(moved, batch, forward(moved, batch), forward))
    replayed = asked[1]
    ids = [sample.id for sample in replayed.samples]
    assert sorted(ids) == sorted(first.kept["disc"]) and len(ids) == len(batch.masks)
    stored = first.memory["logits/disc"][[first.kept["disc"].index(row) for row in ids]]
    answered = forward(moved, replayed)
    expected = 0.3 * F.mse_loss(answered.logits, stored) + beta * batch_loss(answered, replayed, context.options).total
    assert found == pytest.approx(float(expected), rel=1e-5)
    if beta == 0:
        assert float(extra.penalty(first.model, batch, found, forward)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "how", [{}, {"loss_reduction": "reference", "upsampling": "nearest"}, {"loss": "cosam"}], ids=str
)
def test_der_s_term_of_a_batch_is_the_weighted_sum_over_its_parts(
    how: dict[str, str], tasks: tuple[Task, Task], context: Context, toy: ModuleType
) -> None:
    context = replace(context, options=context.options.model_copy(update=how))
    strategy = build_strategy("der", alpha=0.3, beta=0.5, buffer_size=4)
    model = context.adapter.fresh(0)
    first = strategy.remember(None, tasks[:1], model, context)
    extra = strategy.extra(first, tasks, context)
    batch = toy.batch_of(tasks[1].train[:4], context)
    moved = {name: tensor + 0.5 for name, tensor in model.items()}

    def forward(tensors, batch):
        hooks = context.adapter.hooks(tensors, batch.prompts)
        return context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)

    whole = float(extra.penalty(moved, batch, None, forward))
    parts = [batch.part(slice(0, 1)), batch.part(slice(1, 4))]
    assert whole > 0
    assert sum(part.share * float(extra.penalty(moved, part, None, forward)) for part in parts) == pytest.approx(
        whole, rel=1e-5
    )


@pytest.mark.parametrize("name", ["lwf", "ewc", "er", "der"])
def test_strategies_follow_the_protocol_of_cosam(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    """Prompts are drawn in training, the loss is on drawn points; what is stored and measured uses the box."""
    boxed = tuple(
        Task(
            task.name, tuple(replace(s, box=(100.0 + 9 * row, 120.0, 800.0, 900.0)) for row, s in enumerate(task.train))
        )
        for task in tasks
    )
    options = context.options.model_copy(update={"loss": "cosam", "prompts": "cosam", "epochs": 1})
    context = replace(context, options=options)
    first, last = toy.learnt(build_strategy(name), boxed, context)
    again = build_strategy(name).learn(first, boxed, context)
    for found, expected in ((again.model, last.model), (again.memory, last.memory)):
        assert tensor_bytes(found) == tensor_bytes(expected)
    assert tensor_bytes(last.model) != tensor_bytes(first.model)
    if name == "der":
        samples = [sample for sample in boxed[0].train if sample.id in first.kept["disc"]]
        prompts = box_prompts(samples)
        hooks = context.adapter.hooks(first.model, prompts)
        answered = context.backbone.suffix(context.cache.get(samples), prompts, hooks, training=True).logits
        torch.testing.assert_close(first.memory["logits/disc"], answered, rtol=1e-4, atol=1e-4)
