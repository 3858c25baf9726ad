"""Naive, joint and LwF; what all strategies share: order, storage, resumption, choice of the epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import load_nano
from samcl_core.errors import DataError, UsageError
from samcl_core.files import digest_files
from samcl_core.strategies import Context, State, Task, build_strategy, registered_strategies, segment
from samcl_core.strategies.keeping import drawn, kept_samples
from samcl_core.strategies.lwf import distillation
from samcl_core.tensors import load_tensors, tensor_bytes
from samcl_core.training import PrefixCache, train_module

OWN = ("bank", "naive", "joint", "lwf", "ewc", "er", "der")
SEQUENTIAL = tuple(name for name in OWN if name != "joint")


def test_the_strategies_are_registered_with_their_papers() -> None:
    found = registered_strategies()
    assert set(OWN) <= set(found)
    for name, builder in found.items():
        strategy = builder()
        assert strategy.name == name and strategy.title and "arXiv" in strategy.reference
        assert strategy.is_offline == (name == "joint")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("naive", "choose", "best"),
        ("lwf", "temperature", 0.0),
        ("ewc", "weight", -1.0),
        ("er", "replay_frac", 1.0),
        ("er", "buffer_size", 0),
        ("der", "alpha", -0.5),
        ("bank", "selector", "oracle"),
        ("bank", "selector", "tokens"),
        ("bank", "choose", "best"),
    ],
)
def test_bad_options_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"{name}: .*{option}.*{value:g}" if isinstance(value, float) else str(value)):
        build_strategy(name, **{option: value})


def test_the_order_of_domains_is_checked(tasks: tuple[Task, Task], context: Context) -> None:
    naive = build_strategy("naive")
    with pytest.raises(UsageError, match=r"has learnt \[\], expected \['disc'\]"):
        naive.learn(None, tasks, context)
    with pytest.raises(UsageError, match=r"has learnt \['x'\], expected \['disc'\]"):
        naive.learn(State(("x",), {}), tasks, context)


@pytest.mark.parametrize("name", ["naive", "lwf", "ewc", "bank"])
def test_earlier_domains_are_never_touched(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy = build_strategy(name)
    first = strategy.learn(None, tasks[:1], context)
    guarded = strategy.learn(first, (toy.guarded(tasks[0]), tasks[1]), context)
    assert tensor_bytes(guarded.model) == tensor_bytes(strategy.learn(first, tasks, context).model)
    assert guarded.tasks == ("disc", "ground") and guarded.kept == {} and guarded.kept_bytes == 0


def test_naive_is_training_on_from_the_module_before(tasks: tuple[Task, Task], context: Context) -> None:
    naive = build_strategy("naive")
    first = naive.learn(None, tasks[:1], context)
    before = tensor_bytes(first.model)
    second = naive.learn(first, tasks, context)
    arguments = (context.backbone, context.adapter, context.cache)
    by_hand = train_module(*arguments, tasks[1].train, context.options, seed=5, initial=first.model)
    assert tensor_bytes(second.model) == tensor_bytes(by_hand.tensors)
    assert tensor_bytes(first.model) == before, "the state before stays as it is"


def test_joint_sees_all_data_in_any_order(tasks: tuple[Task, Task], context: Context) -> None:
    joint = build_strategy("joint")
    both = joint.learn(None, tasks, context)
    arguments = (context.backbone, context.adapter, context.cache)
    by_hand = train_module(*arguments, [*tasks[0].train, *tasks[1].train], context.options, seed=5)
    assert tensor_bytes(both.model) == tensor_bytes(by_hand.tensors)
    assert tensor_bytes(joint.learn(None, tasks[::-1], context).model) == tensor_bytes(both.model)
    files = [path for task in tasks for s in task.train for path in (s.image, s.mask)]
    assert both.kept == {task.name: tuple(s.id for s in task.train) for task in tasks}
    assert both.kept_bytes == both.memory_bytes == sum(path.stat().st_size for path in files)


def test_naive_forgets_what_joint_and_er_hold(toy: ModuleType, tasks: tuple[Task, Task]) -> None:
    """Real weights: under the point is the object, then everything else is. One module cannot guess which."""
    backbone = load_nano()
    adapter = build_adapter("decoder", backbone.site)
    options = toy.OPTIONS.model_copy(update={"epochs": 8, "lr": 0.003})
    cache = PrefixCache(None, backbone, plan=adapter.plan)
    context = Context(backbone, cache, adapter, options, seed=5)
    after = {}
    for name in ("naive", "er"):
        strategy = build_strategy(name)
        first, last = toy.learnt(strategy, tasks, context)
        held = toy.loss_of(strategy, first, tasks[0].train, context)
        after[name] = toy.loss_of(strategy, last, tasks[0].train, context)
        assert held < 0.5 and toy.loss_of(strategy, last, tasks[1].train, context) < 2
    joint = build_strategy("joint")
    after["joint"] = toy.loss_of(joint, joint.learn(None, tasks, context), tasks[0].train, context)
    assert after["naive"] > 5
    assert max(after["joint"], after["er"]) < 0.3 * after["naive"]


def test_distillation_is_zero_where_both_agree() -> None:
    teacher = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 5
    student = (teacher + 0.5).requires_grad_()
    assert float(distillation(teacher, teacher, 2.0)) == 0.0
    p, q = (teacher / 2).sigmoid().double(), (student / 2).sigmoid().double()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = distillation(student, teacher, 2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4) and found.item() > 0
    (gradient,) = torch.autograd.grad(found, student)  # of the paper's cross-entropy, at the same temperature
    torch.testing.assert_close(gradient, ((q - p) / 2 / teacher.numel()).float(), rtol=1e-4, atol=1e-7)


def test_the_teacher_never_changes(toy: ModuleType, tasks: tuple[Task, Task], context: Context) -> None:
    strategy = build_strategy("lwf", weight=100.0)
    first = strategy.learn(None, tasks[:1], context)
    before = tensor_bytes(first.model)
    extra = strategy.extra(first, tasks, context)
    batch = toy.batch_of(tasks[1].train[:3], context)

    def forward(tensors, batch):
        hooks = context.adapter.hooks(tensors, batch.prompts)
        return context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)

    found = forward(first.model, batch)
    assert float(extra.penalty(first.model, batch, found, forward)) == 0.0, "the student is the teacher at first"
    last = strategy.learn(first, tasks, context)
    assert float(extra.penalty(last.model, batch, forward(last.model, batch), forward)) > 0
    assert tensor_bytes(first.model) == before
    naive = build_strategy("naive").learn(first, tasks, context)
    assert tensor_bytes(last.model) != tensor_bytes(naive.model)


@pytest.mark.parametrize("name", OWN)
def test_states_survive_the_disk_and_repeat(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    strategy = build_strategy(name)
    first = None if strategy.is_offline else strategy.learn(None, tasks[:1], context)
    last = strategy.learn(first, tasks, context)
    last.save(tmp_path / "memory")
    loaded = None
    if first is not None:
        first.save(tmp_path / "first")
        loaded = State.load(tmp_path / "first")
    again = strategy.learn(loaded, tasks, toy.toy_context())
    again.save(tmp_path / "disk")
    assert digest_files(tmp_path / "memory") == digest_files(tmp_path / "disk")

    restored = State.load(tmp_path / "disk")
    assert (restored.tasks, restored.kept, restored.kept_bytes) == (last.tasks, last.kept, last.kept_bytes)
    batch = toy.batch_of([*tasks[0].train[:2], *tasks[1].train[:2]], context)
    answers = [segment(strategy, state, batch.prefix, batch.prompts, context).logits for state in (last, restored)]
    assert torch.equal(*answers)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("name", OWN)
def test_a_killed_training_continues(name: str, tasks: tuple[Task, Task], context: Context, tmp_path: Path) -> None:
    strategy = build_strategy(name)
    first = None if strategy.is_offline else strategy.learn(None, tasks[:1], context)
    steps: list[str] = []

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("epoch 2"):
            raise _Killed

    def count(what: str, done: int, total: int) -> None:
        steps.extend([what] if what.startswith("epoch") else [])

    with pytest.raises(_Killed):
        strategy.learn(first, tasks, replace(context, folder=tmp_path, progress=kill))
    resumed = strategy.learn(first, tasks, replace(context, folder=tmp_path, progress=count))
    assert steps and not any(what.startswith("epoch 1") for what in steps), "the first epoch is not repeated"
    whole = strategy.learn(first, tasks, context)
    for found, expected in ((resumed.model, whole.model), (resumed.memory, whole.memory)):
        assert tensor_bytes(found) == tensor_bytes(expected)
    assert resumed.values == whole.values and resumed.kept == whole.kept


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("lwf", "weight", 3.0),
        ("lwf", "temperature", 1.0),
        ("ewc", "weight", 7.0),
        ("er", "replay_frac", 0.25),
        ("der", "alpha", 0.7),
        ("der", "beta", 0.0),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_used(
    name: str, option: str, value: float, tasks: tuple[Task, Task], context: Context
) -> None:
    first = build_strategy(name).learn(None, tasks[:1], context)
    one, other = (build_strategy(name, **options) for options in ({}, {option: value}))
    keys = [strategy.extra(first, tasks, context).key() for strategy in (one, other)]
    assert keys[0] != keys[1] and keys[0] == build_strategy(name).extra(first, tasks, context).key()


def test_the_best_epoch_is_chosen_on_validation_samples(
    tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    """The validation samples contradict the training samples: the first epoch is the best."""
    task = Task("disc", tasks[0].train, tasks[1].train)
    options = context.options.model_copy(update={"epochs": 3, "lr": 0.1})
    context = replace(context, options=options)
    naive, choosing = build_strategy("naive"), build_strategy("naive", choose="best_val")
    chosen = choosing.learn(None, [task], context)

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("epoch 2"):
            raise _Killed

    with pytest.raises(_Killed):
        choosing.learn(None, [task], replace(context, folder=tmp_path, progress=kill))
    (checkpoint,) = tmp_path.iterdir()
    stored, _ = load_tensors(checkpoint)
    after_first = {name.removeprefix("tensors/"): t for name, t in stored.items() if name.startswith("tensors/")}
    assert tensor_bytes(chosen.model) == tensor_bytes(after_first)
    resumed = choosing.learn(None, [task], replace(context, folder=tmp_path))
    assert tensor_bytes(resumed.model) == tensor_bytes(chosen.model), "a continued training knows its best epoch"

    last = naive.learn(None, [task], context)
    assert tensor_bytes(last.model) != tensor_bytes(chosen.model)
    without = choosing.learn(None, [Task("disc", task.train)], context)
    assert tensor_bytes(without.model) == tensor_bytes(last.model), "no validation samples: the last epoch"


def test_a_stored_sample_that_is_gone_is_an_error(tasks: tuple[Task, Task]) -> None:
    state = State(("disc",), {}, kept={"disc": ("train/images/99.png",)})
    with pytest.raises(DataError, match=r"train/images/99\.png of disc"):
        kept_samples(state, tasks)


def test_draws_use_every_stored_sample_before_any_twice() -> None:
    assert sorted(drawn(5, 5, 0, 0)) == sorted(drawn(5, 5, 0, 1)) == list(range(5))
    assert drawn(5, 5, 0, 0) == drawn(5, 5, 0, 0)
    assert len({tuple(drawn(5, 3, 0, step)) for step in range(20)}) > 5
    rows = drawn(3, 7, 1, 0)
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2] and len(rows) == 7
