"""A benchmark as units of work with dependencies: data, modules, scores, cells. Each unit writes its file once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from samcl_core.benchmarks.ground import Ground, prepare_domains, train_domain, warm_prefixes
from samcl_core.benchmarks.methods import AUGMODULE, Method, expand_methods, parse_method
from samcl_core.benchmarks.rows import (
    bank_rows,
    fit_facts,
    module_facts,
    oracle_rows,
    score_modules,
    score_plain,
    write_pictures,
    zero_shot_rows,
)
from samcl_core.benchmarks.sequences import sequence_rows
from samcl_core.benchmarks.streams import StreamSpec, check_data
from samcl_core.benchmarks.token_rows import token_rows
from samcl_core.errors import UsageError
from samcl_core.evaluation.rmatrix import read_metadata, read_r_matrix, write_r_matrix
from samcl_core.files import sha256_file, write_atomic, write_json
from samcl_core.parquet import read_frame
from samcl_core.progress import Progress, silent

__all__ = ["Cell", "Unit", "check_ready", "is_done", "plan", "read_cells", "run_unit", "to_do"]

_OF_VARIANT = {"default": "bank_gaussian", "reference": "bank_reference"}
_PICTURES = "bank_gaussian"


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        id: unique; also the place of its file below the output folder.
        title: for people.
        needs: ids of the units that must be finished before.
        kind: ``data``, ``prefixes``, ``module``, ``plain``, ``scores``, ``cell`` or ``pictures``.
        seed: of pictures, points, modules and selectors.
        method: name of the method of a cell; of other units one whose adapter and training count.
        domain: of a module.
        order_name: of a cell.
    """

    id: str
    title: str
    needs: tuple[str, ...]
    kind: str
    seed: int
    method: str = "zero_shot"
    domain: str = ""
    order_name: str = ""

    def path(self, root: Path) -> Path:
        """The file that says the unit is finished."""
        return root / f"{self.id}{'.parquet' if self.kind in ('plain', 'scores', 'cell') else '.json'}"


@dataclass(frozen=True)
class Cell:
    """One method measured in one order with one seed.

    Attributes:
        strategy: the method's name.
        order_name: name of the order in the stream.
        order: learnt domains in the order of arrival.
        seed: of everything random.
        frame: the R matrix in long form.
        facts: sizes in bytes, times in ms or s, numbers of parameters; those that exist.
        path: the cell's file.
        digest: sha256 of the file.
        settings: adapter, training and hyper-parameters; cells of version 0.1 do not hold them.
    """

    strategy: str
    order_name: str
    order: tuple[str, ...]
    seed: int
    frame: pd.DataFrame
    facts: dict[str, float]
    path: Path
    digest: str
    settings: dict[str, Any] = field(default_factory=dict)


# The plan -------------------------------------------------------------------------------------------------------------


def plan(spec: StreamSpec, *, strategies: Sequence[str], seeds: Sequence[int], orders: Sequence[str]) -> list[Unit]:
    """The units of a benchmark, each after those it needs.

    Args:
        spec: the stream.
        strategies: names of methods and groups, see ``methods``.
        seeds: at least one.
        orders: names of the stream's orders, ``positions`` for all rotations.

    Raises:
        UsageError: a strategy or an order is unknown, or nothing is asked for.
    """
    methods, order_names = expand_methods(strategies), spec.order_names(list(orders))
    if not seeds:
        raise UsageError("no seed is given, expected at least one")
    return [unit for seed in dict.fromkeys(seeds) for unit in _units_of(spec, seed, methods, order_names)]


def _units_of(spec: StreamSpec, seed: int, methods: Sequence[Method], orders: Sequence[str]) -> Iterator[Unit]:
    end = f"seed-{seed}"
    data = Unit(f"data/{end}", f"{'draw' if spec.is_drawn else 'prepare'} domains, seed {seed}", (), "data", seed)
    yield data
    plain = Unit(f"scores/plain/{end}", f"score plain backbone, seed {seed}", (data.id,), "plain", seed)
    if any(not method.has_modules for method in methods):
        yield plain
    prefixes = {AUGMODULE: data}
    for kind in dict.fromkeys(method.adapter for method in methods):
        if kind not in prefixes:
            title = f"prefixes for {kind}, seed {seed}"
            prefixes[kind] = Unit(f"prefixes/{kind}/{end}", title, (data.id,), "prefixes", seed, f"oracle@{kind}")
            yield prefixes[kind]
    scores: dict[str, Unit] = {}
    for method in methods:
        if method.has_modules and method.variant not in scores:
            *modules, scores[method.variant] = _of_variant(spec, seed, method, prefixes[method.adapter])
            yield from (*modules, scores[method.variant])
    for method in methods:
        needs = (scores[method.variant].id,) if method.has_modules else (plain.id, prefixes[method.adapter].id)
        for order in orders[:1] if method.is_orderless else orders:
            title = f"{method.name}, order {order}, seed {seed}"
            yield Unit(f"cells/{method.name}/{order}/{end}", title, needs, "cell", seed, method.name, "", order)
    if _PICTURES in (method.name for method in methods):
        needs = (scores["default"].id,)
        title = f"draw masks, seed {seed}"
        yield Unit(f"masks/{end}", title, needs, "pictures", seed, _PICTURES, order_name=orders[0])


def _of_variant(spec: StreamSpec, seed: int, method: Method, prefixes: Unit) -> Iterator[Unit]:
    """The modules that some methods share, and their scores."""
    variant = method.variant
    name = _OF_VARIANT.get(variant, f"oracle@{variant}")
    text = f"{variant} profile" if variant in _OF_VARIANT else variant
    needs = []
    for domain in spec.names("learn"):
        needs.append(f"modules/{variant}/{domain}/seed-{seed}")
        yield Unit(needs[-1], f"train {domain}, {text}, seed {seed}", (prefixes.id,), "module", seed, name, domain)
    title = f"score all modules, {text}, seed {seed}"
    yield Unit(f"scores/{variant}/seed-{seed}", title, tuple(needs), "scores", seed, name)


# Work -----------------------------------------------------------------------------------------------------------------


def is_done(root: Path, unit: Unit) -> bool:
    """Whether the unit's file is there."""
    return unit.path(root).is_file()


def to_do(root: Path, units: Sequence[Unit]) -> frozenset[str]:
    """Ids of the unfinished cells and pictures, and of the unfinished units that these need, directly or not."""
    missing = {unit.id: unit for unit in units if not is_done(root, unit)}
    found: set[str] = set()
    wanted = [unit.id for unit in missing.values() if unit.kind in ("cell", "pictures")]
    while wanted:
        name = wanted.pop()
        if name in missing and name not in found:
            found.add(name)
            wanted += missing[name].needs
    return frozenset(found)


def check_ready(root: Path, spec: StreamSpec, units: Sequence[Unit]) -> None:
    """See that the data are there, where units that are to do will read them.

    Raises:
        DataError: folders are missing.
    """
    if to_do(root, units) & {unit.id for unit in units if unit.kind == "data"}:
        check_data(spec)


def run_unit(root: Path, spec: StreamSpec, unit: Unit, device: str, progress: Progress = silent) -> None:
    """Do one unit and write its file last; a finished one returns at once.

    Raises:
        SamclError: what the unit needs is missing or cannot be used.
    """
    if is_done(root, unit):
        return
    ground = Ground(root, spec, unit.seed, parse_method(unit.method), device, progress)
    _RUN[unit.kind](ground, unit)


def _run_data(ground: Ground, unit: Unit) -> None:
    write_json(unit.path(ground.root), prepare_domains(ground))


def _run_prefixes(ground: Ground, unit: Unit) -> None:
    write_json(unit.path(ground.root), warm_prefixes(ground))


def _run_module(ground: Ground, unit: Unit) -> None:
    write_json(unit.path(ground.root), train_domain(ground, unit.domain))


def _run_plain(ground: Ground, unit: Unit) -> None:
    write_atomic(unit.path(ground.root), score_plain(ground).to_parquet(index=False))


def _run_scores(ground: Ground, unit: Unit) -> None:
    write_atomic(unit.path(ground.root), score_modules(ground).to_parquet(index=False))


def _run_cell(ground: Ground, unit: Unit) -> None:
    order, path, method = ground.spec.order(unit.order_name), unit.path(ground.root), ground.method
    frame, facts = _measured(ground, read_frame(ground.root / f"{unit.needs[0]}.parquet"), order, path.with_suffix(""))
    meta = {"strategy": unit.method, "order_name": unit.order_name, "order": list(order), "seed": unit.seed}
    meta |= {"facts": facts, "settings": ground.spec.settings(method)}
    write_r_matrix(path, frame, {"cell": json.dumps(meta, sort_keys=True)})
    _tidy(path.with_suffix(""), len(order))


def _measured(
    ground: Ground, scores: pd.DataFrame, order: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    method = ground.method
    if method.strategy:
        return sequence_rows(ground, zero_shot_rows(ground, scores), order, folder)
    if not method.has_modules:
        return zero_shot_rows(ground, scores), {}
    if method.selector == "tokens":
        frame, facts = token_rows(ground, scores, order, folder)
        return frame, module_facts(ground) | facts
    if method.selector:
        return bank_rows(ground, scores, order), module_facts(ground) | fit_facts(ground, order)
    return oracle_rows(ground, scores, order), module_facts(ground)


def _tidy(folder: Path, last: int) -> None:
    """Of a finished cell the last state stays; its rows are in the cell's file."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.is_dir() and path.name != str(last):
            shutil.rmtree(path)


def _run_pictures(ground: Ground, unit: Unit) -> None:
    order = ground.spec.order(unit.order_name)
    write_json(unit.path(ground.root), write_pictures(ground, order, ground.root / "masks"))


_RUN: dict[str, Callable[[Ground, Unit], None]] = {
    "data": _run_data,
    "prefixes": _run_prefixes,
    "module": _run_module,
    "plain": _run_plain,
    "scores": _run_scores,
    "cell": _run_cell,
    "pictures": _run_pictures,
}


# Results --------------------------------------------------------------------------------------------------------------


def read_cells(root: Path) -> list[Cell]:
    """Every finished cell below ``root``: in the order of the tables' rows, then of orders and seeds.

    Raises:
        DataError: a file is no cell.
        UsageError: a cell's method or adapter is not known here.
    """
    cells = [_read_cell(root, path) for path in sorted((root / "cells").glob("*/*/seed-*.parquet"))]
    methods = expand_methods([cell.strategy for cell in cells]) if cells else ()
    rank = {method.name: place for place, method in enumerate(methods)}
    return sorted(cells, key=lambda cell: (rank[cell.strategy], cell.order_name, cell.seed))


def _read_cell(root: Path, path: Path) -> Cell:
    meta = json.loads(read_metadata(path)["cell"])
    facts = {name: float(value) for name, value in meta["facts"].items()}
    return Cell(
        meta["strategy"],
        meta["order_name"],
        tuple(meta["order"]),
        int(meta["seed"]),
        read_r_matrix(path),
        {**_module_seconds(root, meta), **facts},
        path,
        sha256_file(path),
        meta.get("settings", {}),
    )


def _module_seconds(root: Path, meta: dict[str, Any]) -> dict[str, float]:
    """How long the trainings of all modules took, where the cell's method uses modules and they are there."""
    method = parse_method(meta["strategy"])
    folder = root / "modules" / method.variant
    files = [folder / domain / f"seed-{meta['seed']}.json" for domain in meta["order"]] if method.has_modules else []
    if not files or not all(path.is_file() for path in files):
        return {}
    seconds = [json.loads(path.read_text(encoding="utf-8"))["train_seconds"] for path in files]
    return {"train_seconds": float(sum(seconds))}
