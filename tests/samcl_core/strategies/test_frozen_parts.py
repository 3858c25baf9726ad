"""What O-LoRA and the prompt pools have in common: states, seeds, resuming, and parts that never change again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import tiny_sam2_backbone
from samcl_core.errors import BankError, UsageError
from samcl_core.strategies import Context, State, Strategy, Task, build_strategy, registered_strategies, segment
from samcl_core.training import PrefixCache

SMALL: dict[str, dict[str, Any]] = {
    "o_lora": {},
    "l2p": {"num_prompts": 6, "num_chosen": 2, "length": 3},
    "dualprompt": {"general_length": 2, "expert_length": 4},
    "coda_prompt": {"num_components": 3, "length": 2},
}
NAMES = pytest.mark.parametrize("name", list(SMALL))


class Stopped(Exception):
    """What a training is interrupted with."""


def prepared(name: str, context: Context) -> tuple[Strategy, Context]:
    """The strategy with small numbers, and the context with the adapter that it is made for."""
    strategy = build_strategy(name, **SMALL[name])
    options = {"rank": 2} if name == "o_lora" else {"num_tokens": 2}
    assert strategy.adapter is not None
    return strategy, replace(context, adapter=build_adapter(strategy.adapter["kind"], context.backbone.site, **options))


def same(a: State, b: State) -> bool:
    return (
        a.tasks == b.tasks
        and list(a.model) == list(b.model)
        and all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    )


@NAMES
def test_same_seed_same_bytes_and_earlier_samples_are_never_read(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy, context = prepared(name, context)
    first, second = toy.learnt(strategy, tasks, context)
    again = strategy.learn(first, (toy.guarded(tasks[0]), tasks[1]), context)
    assert same(second, again)
    assert second.tasks == ("disc", "ground") and second.memory_bytes == 0
    assert not same(first, strategy.learn(None, tasks[:1], replace(context, seed=6)))


@NAMES
def test_a_state_survives_its_files(
    name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    strategy, context = prepared(name, context)
    first, second = toy.learnt(strategy, tasks, context)
    first.save(tmp_path / "first")
    assert same(strategy.learn(State.load(tmp_path / "first"), tasks, context), second)
    batch = toy.batch_of(tasks[0].train + tasks[1].train, context)
    plain = segment(strategy, None, batch.prefix, batch.prompts, context).logits
    found = segment(strategy, second, batch.prefix, batch.prompts, context).logits
    assert found.shape == plain.shape and not torch.allclose(found, plain)


@NAMES
@pytest.mark.parametrize("stop", [2, 3])
def test_killed_in_the_second_domain_and_resumed(
    name: str, stop: int, toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    strategy, context = prepared(name, context)
    first, second = toy.learnt(strategy, tasks, context)
    steps: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if what.startswith("epoch"):
            steps.append(done)
            if done == stop and len(steps) == stop:
                raise Stopped

    kept = replace(context, folder=tmp_path, progress=kill)
    with pytest.raises(Stopped):
        strategy.learn(first, tasks, kept)
    assert same(strategy.learn(first, tasks, kept), second)
    assert steps == ([1, 2, 1, 2, 3, 4] if stop == 2 else [1, 2, 3, 3, 4])  # two steps an epoch, saved after each


@NAMES
def test_a_checkpoint_of_another_past_is_not_continued(
    name: str, tasks: tuple[Task, Task], toy: ModuleType, context: Context, tmp_path: Path
) -> None:
    strategy, context = prepared(name, context)
    first = strategy.learn(None, tasks[:1], context)
    other = replace(first, model={key: tensor + 0.01 for key, tensor in first.model.items()})
    kept = replace(context, folder=tmp_path)
    strategy.learn(other, tasks, kept)
    assert same(strategy.learn(first, tasks, kept), strategy.learn(first, tasks, context))


@NAMES
def test_the_order_of_the_stream_is_checked(name: str, tasks: tuple[Task, Task], context: Context) -> None:
    strategy, context = prepared(name, context)
    with pytest.raises(UsageError, match=r"has learnt \[\], expected \['disc'\]"):
        strategy.learn(None, tasks, context)


@NAMES
def test_sam2_is_served_too(name: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context) -> None:
    backbone = tiny_sam2_backbone()
    options = context.options.model_copy(update={"epochs": 1})
    context = replace(context, backbone=backbone, cache=PrefixCache(None, backbone), options=options)
    strategy, context = prepared(name, context)
    state = strategy.learn(None, [Task("disc", tasks[0].train[:2])], context)
    assert toy.loss_of(strategy, state, tasks[1].train[:2], context) > 0


@NAMES
def test_one_part_for_all_domains_takes_no_index(
    name: str, tasks: tuple[Task, Task], toy: ModuleType, context: Context
) -> None:
    strategy, context = prepared(name, context)
    adapter = strategy.adapter_in_training({}, context)  # type: ignore[attr-defined]
    prompts = toy.batch_of(tasks[0].train[:2], context).prompts
    with pytest.raises(BankError, match="expected no index"):
        adapter.hooks(adapter.null(), prompts, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(BankError, match="is missing"):
        adapter.hooks({}, prompts)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("o_lora", {"ortho_weight": -0.5}, r"ortho_weight is -0.5, expected a number of at least 0"),
        ("o_lora", {"l2_weight": float("nan")}, "l2_weight is nan"),
        ("l2p", {"num_chosen": 11}, "num_chosen is 11, expected a whole number from 1 to 10"),
        ("l2p", {"length": 0}, "length is 0"),
        ("dualprompt", {"expert_length": 2.5}, "expert_length is 2.5"),
        ("coda_prompt", {"num_components": True}, "num_components is True"),
        ("coda_prompt", {"choose": "first"}, "choose is 'first'"),
        ("coda_prompt", {"rank": 3}, "has no option rank"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_strategy(name, **options)


def test_all_four_are_registered_with_a_paper() -> None:
    for name in SMALL:
        strategy = registered_strategies()[name]
        assert strategy.name == name and strategy.reference.startswith("arXiv ")  # type: ignore[attr-defined]
