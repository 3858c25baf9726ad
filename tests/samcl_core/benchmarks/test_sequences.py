"""Any registered strategy fills a cell: stopped in the middle it continues, and what it keeps is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from samcl_core.backbones.base import Prefix, Prompts, SuffixHooks
from samcl_core.benchmarks import StreamSpec, TrainedSpec, is_done, parse_method, plan, read_cells, run_unit
from samcl_core.errors import TrainingError, UsageError
from samcl_core.evaluation.rmatrix import pivot
from samcl_core.strategies import base
from samcl_core.strategies.base import Context, State, Task

SPEC = StreamSpec(
    name="two",
    title="Two domains",
    size_px=64,
    num_train=4,
    num_test=2,
    num_val=1,
    domains={"Polyp": {"scene": "polyp"}, "Crack": {"scene": "crack"}, "Cells": {"scene": "cells", "role": "unseen"}},
    params={"backbone": {"name": "tiny"}, "train": {"epochs": 1}},
    strategies={"toy": {"bonus": 3, "train": {"lr": 0.25}}},
)


@dataclass(frozen=True)
class Toy:
    """Keeps a fresh module that it never trains, and the ids of all samples."""

    bonus: int = 1

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "toy"
    reference: ClassVar[str] = "nobody"
    adapter: ClassVar[Mapping[str, Any] | None] = None
    is_offline: ClassVar[bool] = False
    fails_at: ClassVar[int] = 0
    calls: ClassVar[list[tuple[tuple[str, ...], int, int, float, int]]] = []

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        known = () if state is None else state.tasks
        assert known == tuple(task.name for task in tasks[:-1])
        if len(tasks) == Toy.fails_at:
            raise TrainingError("stopped here")
        rate, vals = context.options.lr, len(tasks[-1].val)
        Toy.calls.append((known, len(tasks[-1].train), vals, rate, self.bonus))
        kept = {task.name: tuple(sample.id for sample in task.train) for task in tasks}
        model = {"w": torch.zeros(5), **context.adapter.fresh(context.seed)}
        memory = {"teacher": torch.zeros(2)}
        return State((*known, tasks[-1].name), model, memory, kept=kept, kept_bytes=100 * len(tasks))

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        return context.adapter.hooks(state.model, prompts)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Toy]:
    monkeypatch.setitem(base._BUILDERS, "toy", Toy)
    monkeypatch.setattr(Toy, "calls", [])
    return Toy


def test_a_stopped_cell_continues_with_the_step_that_is_missing(
    tmp_path: Path, toy: type[Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    *before, cell = plan(SPEC, strategies=["toy@lora"], seeds=[0], orders=["reverse"])
    assert [unit.kind for unit in before] == ["data", "plain", "prefixes"]
    for unit in before:
        run_unit(tmp_path, SPEC, unit, "cpu")
    monkeypatch.setattr(toy, "fails_at", 2)
    with pytest.raises(TrainingError, match="stopped here"):
        run_unit(tmp_path, SPEC, cell, "cpu")
    assert not is_done(tmp_path, cell)
    first = State.load(cell.path(tmp_path).with_suffix("") / "1")
    assert first.tasks == ("Crack",)

    monkeypatch.setattr(toy, "fails_at", 0)
    run_unit(tmp_path, SPEC, cell, "cpu")
    # One learning a domain: 4 training samples and 1 for validation, with the stream's options.
    assert toy.calls == [((), 4, 1, 0.25, 3), (("Crack",), 4, 1, 0.25, 3)]

    (found,) = read_cells(tmp_path)
    matrix = pivot(found.frame, "iou", found.order)
    assert found.order == ("Crack", "Polyp") and list(matrix.index) == [0, 1, 2]
    # A fresh module changes nothing beyond rounding.
    assert (matrix - matrix.loc[0]).abs().max(axis=None) < 0.02
    adapter = first.model_bytes - 5 * 4
    assert found.facts["model_bytes"] == adapter + 5 * 4
    assert found.facts["num_parameters"] == found.facts["model_bytes"] / 4
    assert found.facts["memory_bytes"] == 2 * 4 + 200
    assert found.facts["train_seconds"] > 0
    assert found.settings["strategy"] == {"bonus": 3}
    assert (found.settings["adapter"]["kind"], found.settings["train"]["lr"]) == ("lora", 0.25)


def test_an_offline_strategy_is_measured_once_after_all_domains(
    tmp_path: Path, toy: type[Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "is_offline", True)
    units = plan(SPEC, strategies=["toy"], seeds=[0], orders=["default", "reverse"])
    assert [unit.order_name for unit in units if unit.kind == "cell"] == ["default"]
    assert parse_method("toy").is_orderless and parse_method("toy").adapter == "hq_decoder"


def test_options_that_a_strategy_does_not_have_are_refused(tmp_path: Path, toy: type[Toy]) -> None:
    spec = SPEC.model_copy(update={"strategies": {"toy": TrainedSpec.model_validate({"speed": 1})}})
    with pytest.raises(UsageError, match="strategy toy has no option speed, expected some of bonus"):
        spec.settings(replace(parse_method("toy"), name="toy"))
