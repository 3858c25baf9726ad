"""A benchmark as units of work with dependencies: data, modules, scores, cells. Each unit writes its file once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from samcl_core.benchmarks.measure import (
    Ground,
    bank_rows,
    fit_facts,
    joint_rows,
    module_facts,
    naive_rows,
    oracle_rows,
    prepare_domains,
    score_modules,
    train_domain,
    write_pictures,
    zero_shot_rows,
)
from samcl_core.benchmarks.streams import StreamSpec
from samcl_core.errors import UsageError
from samcl_core.evaluation.rmatrix import read_metadata, read_r_matrix, write_r_matrix
from samcl_core.files import digest_json, sha256_file, write_atomic, write_json
from samcl_core.progress import Progress, silent

__all__ = ["STRATEGIES", "Cell", "Unit", "is_done", "open_benchmark", "plan", "read_cells", "run_unit"]

STRATEGIES = {
    "zero_shot": "zero-shot",
    "oracle": "one module a domain, oracle's choice",
    "bank_gaussian": "bank, default profile, gaussian selector",
    "bank_mlp": "bank, default profile, MLP selector",
    "bank_reference": "bank, reference profile, MLP selector",
    "naive": "one module, trained in sequence",
    "joint": "one module, trained jointly",
}
"""Name to title, in the order of the table's rows."""

_PROFILE = {"bank_reference": "reference"}
_OF_SCORES = ("zero_shot", "oracle", "bank_gaussian", "bank_mlp", "bank_reference")
"""Strategies whose cells are looked up in the scores of every module on every test image."""

_ORDERLESS = ("zero_shot", "joint")
"""Strategies that the order of arrival cannot change; they run under the first order only."""


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        id: unique; also the place of its file below the output folder.
        title: for people.
        needs: ids of the units that must be finished before.
        kind: ``data``, ``module``, ``scores``, ``cell`` or ``pictures``.
        seed: of pictures, points, modules and selectors.
        profile: ``default`` or ``reference``.
        domain: of a module.
        strategy: of a cell.
        order_name: of a cell.
    """

    id: str
    title: str
    needs: tuple[str, ...]
    kind: str
    seed: int
    profile: str = "default"
    domain: str = ""
    strategy: str = ""
    order_name: str = ""

    def path(self, root: Path) -> Path:
        """The file that says the unit is finished."""
        return root / f"{self.id}{'.parquet' if self.kind in ('scores', 'cell') else '.json'}"


@dataclass(frozen=True)
class Cell:
    """One strategy measured in one order with one seed.

    Attributes:
        strategy: its name in ``STRATEGIES``.
        order_name: name of the order in the stream.
        order: learnt domains in the order of arrival.
        seed: of everything random.
        frame: the R matrix in long form.
        facts: sizes in bytes, times in ms or s, numbers of parameters; those that exist.
        path: the cell's file.
        digest: sha256 of the file.
    """

    strategy: str
    order_name: str
    order: tuple[str, ...]
    seed: int
    frame: pd.DataFrame
    facts: dict[str, float]
    path: Path
    digest: str


def plan(spec: StreamSpec, *, strategies: Sequence[str], seeds: Sequence[int], orders: Sequence[str]) -> list[Unit]:
    """The units of a benchmark, each after those it needs.

    Raises:
        UsageError: a strategy or an order is unknown, or nothing is asked for.
    """
    _check_known("strategy", strategies, STRATEGIES)
    _check_known("order", orders, spec.orders)
    if not seeds:
        raise UsageError("no seed is given, expected at least one")
    return [unit for seed in dict.fromkeys(seeds) for unit in _units_of(spec, seed, strategies, orders)]


def _check_known(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    expected = list(known)
    unknown = [name for name in names if name not in expected]
    if not names:
        raise UsageError(f"no {what} is given, expected some of {', '.join(expected)}")
    if unknown:
        raise UsageError(f"{what} {', '.join(unknown)} is unknown, expected some of {', '.join(expected)}")


def _units_of(spec: StreamSpec, seed: int, strategies: Sequence[str], orders: Sequence[str]) -> Iterator[Unit]:
    data = Unit(f"data/seed-{seed}", f"draw domains, seed {seed}", (), "data", seed)
    yield data
    scores: dict[str, Unit] = {}
    for profile in dict.fromkeys(_PROFILE.get(name, "default") for name in strategies if name in _OF_SCORES):
        modules = [_module(seed, profile, domain, data) for domain in spec.names("learn")]
        yield from modules
        needs = tuple(unit.id for unit in modules)
        title = f"score all modules, {profile} profile, seed {seed}"
        scores[profile] = Unit(f"scores/{profile}/seed-{seed}", title, needs, "scores", seed, profile)
        yield scores[profile]
    for strategy in strategies:
        profile = _PROFILE.get(strategy, "default")
        need = scores[profile] if strategy in _OF_SCORES else data
        for order in orders[:1] if strategy in _ORDERLESS else orders:
            where = f"cells/{strategy}/{order}/seed-{seed}"
            title = f"{strategy}, order {order}, seed {seed}"
            yield Unit(where, title, (need.id,), "cell", seed, profile, strategy=strategy, order_name=order)
    if "bank_gaussian" in strategies:
        needs = (scores["default"].id,)
        yield Unit(f"masks/seed-{seed}", f"draw masks, seed {seed}", needs, "pictures", seed, order_name=orders[0])


def _module(seed: int, profile: str, domain: str, data: Unit) -> Unit:
    title = f"train {domain}, {profile} profile, seed {seed}"
    return Unit(f"modules/{profile}/{domain}/seed-{seed}", title, (data.id,), "module", seed, profile, domain)


def open_benchmark(root: Path, spec: StreamSpec, backbone_sha256: str) -> None:
    """Say in ``benchmark.json`` what the folder holds, or see that it says the same.

    Raises:
        UsageError: the folder holds another stream, other sizes, or results of another backbone.
    """
    record = {"schema_version": 1, "stream": spec.model_dump(mode="json"), "backbone_sha256": backbone_sha256}
    path = root / "benchmark.json"
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if digest_json(found) != digest_json(record):
        different = [key for key in record if found.get(key) != record[key]]
        raise UsageError(
            f"{root} holds a benchmark with another {' and '.join(different)}", hint="choose another folder with --out"
        )


def is_done(root: Path, unit: Unit) -> bool:
    """Whether the unit's file is there."""
    return unit.path(root).is_file()


def run_unit(root: Path, spec: StreamSpec, unit: Unit, device: str, progress: Progress = silent) -> None:
    """Do one unit and write its file last; a finished one returns at once.

    Raises:
        SamclError: what the unit needs is missing or cannot be used.
    """
    if is_done(root, unit):
        return
    ground = Ground(root, spec, unit.seed, unit.profile, device, progress)
    _RUN[unit.kind](ground, unit)


def _run_data(ground: Ground, unit: Unit) -> None:
    write_json(unit.path(ground.root), prepare_domains(ground))


def _run_module(ground: Ground, unit: Unit) -> None:
    write_json(unit.path(ground.root), train_domain(ground, unit.domain))


def _run_scores(ground: Ground, unit: Unit) -> None:
    write_atomic(unit.path(ground.root), score_modules(ground).to_parquet(index=False))


def _run_cell(ground: Ground, unit: Unit) -> None:
    order = ground.spec.orders[unit.order_name]
    facts: dict[str, float] = {}
    if unit.strategy in _OF_SCORES:
        path = ground.root / f"{unit.needs[0]}.parquet"
        ground = ground.with_scores(pd.read_parquet(path))
    if unit.strategy == "zero_shot":
        frame = zero_shot_rows(ground)
    elif unit.strategy == "oracle":
        frame, facts = oracle_rows(ground, order), module_facts(ground)
    elif unit.strategy == "naive":
        frame, facts = naive_rows(ground, order, unit.path(ground.root).with_suffix(""))
    elif unit.strategy == "joint":
        frame, facts = joint_rows(ground, order, unit.path(ground.root).with_suffix(""))
    else:
        kind = "gaussian" if unit.strategy == "bank_gaussian" else "mlp"
        frame = bank_rows(ground, order, kind)
        facts = module_facts(ground) | fit_facts(ground, order, kind)
    meta = {"strategy": unit.strategy, "order_name": unit.order_name, "order": list(order), "seed": unit.seed}
    write_r_matrix(unit.path(ground.root), frame, {"cell": json.dumps({**meta, "facts": facts}, sort_keys=True)})


def _run_pictures(ground: Ground, unit: Unit) -> None:
    write_json(
        unit.path(ground.root), write_pictures(ground, ground.spec.orders[unit.order_name], ground.root / "masks")
    )


_RUN: dict[str, Callable[[Ground, Unit], None]] = {
    "data": _run_data,
    "module": _run_module,
    "scores": _run_scores,
    "cell": _run_cell,
    "pictures": _run_pictures,
}


def read_cells(root: Path) -> list[Cell]:
    """Every finished cell below ``root``: strategies in the table's order, then orders and seeds.

    Raises:
        DataError: a file is no cell.
    """
    cells = [_read_cell(path) for path in sorted((root / "cells").glob("*/*/seed-*.parquet"))]
    rank = list(STRATEGIES)
    return sorted(cells, key=lambda cell: (rank.index(cell.strategy), cell.order_name, cell.seed))


def _read_cell(path: Path) -> Cell:
    meta = json.loads(read_metadata(path)["cell"])
    return Cell(
        meta["strategy"],
        meta["order_name"],
        tuple(meta["order"]),
        int(meta["seed"]),
        read_r_matrix(path),
        {name: float(value) for name, value in meta["facts"].items()},
        path,
        sha256_file(path),
    )
