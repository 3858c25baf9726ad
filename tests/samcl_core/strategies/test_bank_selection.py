"""The bank as a strategy is the bank that the pipeline makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samcl_core.bank import Bank, Module, pack
from samcl_core.config import PROFILES, SelectorParams
from samcl_core.inference import Segmenter
from samcl_core.strategies import Context, Task, bank_of, base_bank, build_strategy, extend_bank, segment
from samcl_core.strategies.base import State
from samcl_core.tensors import tensor_bytes
from samcl_core.training import train_module


def real_bank(tasks: tuple[Task, ...], context: Context, kind: str) -> Bank:
    """A bank made by hand, as the pipeline's steps make it."""
    params = SelectorParams(**{**PROFILES["default"]["selector"], "kind": kind})
    backbone, cache = context.backbone, context.cache
    natural = {name: cache.embeddings(samples) for name, samples in context.natural.items()}
    bank = base_bank(backbone.name, backbone.sha256, natural, params, context.seed)
    for task in tasks:
        arguments = (backbone, context.adapter, cache, task.train, context.options)
        tensors = pack(train_module(*arguments, seed=context.seed).tensors)
        settings = context.adapter.parameters()
        split = backbone.site.blocks[0]
        module = Module(
            task.name, "augmodule", settings, backbone.name, backbone.sha256, split, "d", 5, "c", {}, tensors
        )
        bank = extend_bank(bank, module, cache.embeddings(task.train), params, context.seed)
    return bank


@pytest.mark.parametrize("kind", ["gaussian", "mlp"])
def test_the_strategy_equals_the_banks_segmenter(
    kind: str, toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    natural = toy.discs(tmp_path, "nature", 4, is_inverted=False)
    context = replace(context, natural={"nature": natural})
    strategy = build_strategy("bank", selector=kind)
    states = toy.learnt(strategy, tasks, context)
    for count, state in enumerate(states, 1):
        bank = real_bank(tasks[:count], context, kind)
        made = bank_of(state, context)
        assert made.digest == bank.digest, "modules, selector and its state, byte for byte"
        segmenter = Segmenter(context.backbone, bank)
        batch = toy.batch_of([tasks[1].train[0], natural[1], tasks[0].train[0], tasks[1].train[1]], context)
        expected, routing = segmenter.segment(batch.prefix, batch.prompts)
        found = segment(strategy, state, batch.prefix, batch.prompts, context)
        assert torch.equal(found.logits, expected.logits) and torch.equal(found.iou, expected.iou)
    assert {"disc", "ground"} & set(routing.names), "some images get a module"
    made.save(tmp_path / "bank")
    assert Bank.load(tmp_path / "bank", context.backbone.sha256).names == ("disc", "ground")


def test_earlier_modules_keep_their_bytes(toy: ModuleType, tasks: tuple[Task, Task], context: Context) -> None:
    first, last = toy.learnt(build_strategy("bank"), tasks, context)
    for name, tensor in first.model.items():
        if name.startswith("modules/"):
            assert torch.equal(last.model[name], tensor)
    assert last.model_bytes > first.model_bytes and last.kept_bytes == 0 < last.memory_bytes


def test_each_sample_of_a_batch_gets_its_own_module(
    toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    _, state = toy.learnt(build_strategy("bank", selector_options={"fallback": "never"}), tasks, context)
    strategy = build_strategy("bank", selector_options={"fallback": "never"})
    mixed = [sample for pair in zip(tasks[0].train, tasks[1].train, strict=True) for sample in pair]
    batch = toy.batch_of(mixed, context)
    together = segment(strategy, state, batch.prefix, batch.prompts, context).logits
    rows = bank_of(state, context).selector.choose(batch.prefix.embedding).index
    assert set(rows.tolist()) == {0, 1}
    for place, name in enumerate(("disc", "ground")):
        tensors = bank_of(state, context).modules[place].weights
        alone = context.backbone.suffix(batch.prefix, batch.prompts, context.adapter.hooks(tensors, batch.prompts))
        chosen = rows == place
        torch.testing.assert_close(together[chosen], alone.logits[chosen], rtol=1e-4, atol=1e-5)
        assert name == state.tasks[place]


def test_an_answer_follows_the_state_and_not_the_instance(
    toy: ModuleType, tasks: tuple[Task, Task], context: Context
) -> None:
    strategy = build_strategy("bank", selector_options={"fallback": "never"})
    first, last = toy.learnt(strategy, tasks, context)
    batch = toy.batch_of(tasks[1].train, context)
    answers = [segment(strategy, state, batch.prefix, batch.prompts, context).logits for state in (first, last, first)]
    assert torch.equal(answers[0], answers[2]) and not torch.equal(answers[0], answers[1])
    copy = State(last.tasks, last.model, last.memory, last.values)
    again = segment(build_strategy("bank"), copy, batch.prefix, batch.prompts, context).logits
    assert torch.equal(again, answers[1])
    assert tensor_bytes(copy.model) == tensor_bytes(last.model)
