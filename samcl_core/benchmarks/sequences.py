"""Rows of the R matrix of any registered strategy: learn a domain, store the state, score every domain, go on.

A cell's folder holds the state after each step and the row that was scored with it, so that a stopped cell continues
with the first step that is missing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from samcl_core.backbones.base import Backbone, Masks, Prefix, Prompts
from samcl_core.benchmarks.ground import Ground
from samcl_core.evaluation.rmatrix import SCORES, read_metadata, read_r_matrix, score_cells, write_r_matrix
from samcl_core.files import write_json
from samcl_core.inference.scoring import score_samples
from samcl_core.inference.segmenter import Routing
from samcl_core.progress import Progress
from samcl_core.strategies.base import Context, State, Strategy, Task, build_strategy, segment

__all__ = ["Learnt", "build", "sequence_rows", "tasks_of"]


@dataclass
class Learnt:
    """A strategy's state as something that answers with masks; it is not told any image's domain."""

    strategy: Strategy
    state: State
    context: Context
    backbone: Backbone

    @torch.no_grad()
    def segment(self, prefix: Prefix, prompts: Prompts, module: str) -> tuple[Masks, Routing]:
        """Masks of a batch; ``module`` is of no account."""
        count = len(prefix)
        names = (self.strategy.name,) * count
        routing = Routing(torch.zeros(count, dtype=torch.long), names, torch.ones(count), torch.zeros(count))
        return segment(self.strategy, self.state, prefix, prompts, self.context), routing


def build(ground: Ground, folder: Path | None = None, progress: Progress | None = None) -> tuple[Strategy, Context]:
    """The method's strategy, and what it works with; checkpoints are kept in ``folder``."""
    params, options = ground.params, ground.spec.strategy_options(ground.method)
    strategy = build_strategy(ground.method.strategy, **options)
    cache, told = ground.cache, progress or ground.progress
    context = Context(
        cache.backbone, cache, ground.adapter, params.train, ground.seed, ground.natural, folder, progress=told
    )
    return strategy, context


def tasks_of(ground: Ground, order: Sequence[str]) -> list[Task]:
    """The learnt domains in the order of arrival, without their test samples."""
    return [Task(name, tuple(ground.samples(name, "train")), tuple(ground.samples(name, "val"))) for name in order]


def sequence_rows(
    ground: Ground, zero_shot: pd.DataFrame, order: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows 0 to T of a strategy, of an offline one 0 and T alone; and what it costs after the last.

    Args:
        ground: what it is measured on.
        zero_shot: row 0.
        order: learnt domains in the order of arrival.
        folder: of the cell; what is finished in it is loaded.
    """
    tasks = tasks_of(ground, order)
    steps = [len(order)] if ground.method.is_offline else list(range(1, len(order) + 1))
    frames, seconds, state, done = [zero_shot], 0.0, None, 0
    for step in steps:
        path = folder / f"row-{step}.parquet"
        if not path.is_file():
            before = State.load(folder / str(done)) if done and state is None else state
            state, took = _learn(ground, before, tasks[:step], folder, step)
            _write_row(ground, state, step, took, path)
        frames.append(read_r_matrix(path))
        seconds += float(json.loads(read_metadata(path)["seconds"]))
        done = step
    state = state or State.load(folder / str(done))
    return pd.concat(frames, ignore_index=True), _facts(state, seconds)


def _learn(ground: Ground, before: State | None, tasks: Sequence[Task], folder: Path, step: int) -> tuple[State, float]:
    """The state after ``tasks``: the one in ``folder``, or learnt now and stored there; and how long that took."""
    place, times = folder / str(step), folder / f"seconds-{step}.json"
    if place.is_dir() and times.is_file():
        return State.load(place), float(json.loads(times.read_text(encoding="utf-8")))

    def report(what: str, count: int, total: int) -> None:
        ground.progress(f"{tasks[-1].name}: {what}", count, total)

    checkpoints = folder / f"checkpoints-{step}"
    strategy, context = build(ground, checkpoints, report)
    started = time.perf_counter()
    state = strategy.learn(before, tasks, context)
    took = time.perf_counter() - started
    write_json(times, took)
    state.save(place)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return state, took


def _write_row(ground: Ground, state: State, step: int, seconds: float, path: Path) -> None:
    strategy, context = build(ground)
    learnt, frames = Learnt(strategy, state, context, context.backbone), []
    for domain, spec in ground.spec.domains.items():
        samples = ground.samples(domain, "test")
        scored = score_samples(learnt, ground.cache, samples, ground.params.evaluate)
        frames.append(score_cells(step, domain, spec.role, {metric: scored[metric] for metric in SCORES}))
        ground.progress(f"row {step}", len(frames), len(ground.spec.domains))
    write_r_matrix(path, pd.concat(frames, ignore_index=True), {"seconds": json.dumps(seconds)})


def _facts(state: State, seconds: float) -> dict[str, float]:
    return {
        "num_parameters": float(sum(tensor.numel() for tensor in state.model.values())),
        "model_bytes": float(state.model_bytes),
        "memory_bytes": float(state.memory_bytes),
        "train_seconds": seconds,
    }
