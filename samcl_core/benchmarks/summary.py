"""The numbers of a benchmark: one cell's by name, a strategy's mean and deviation over its cells, rows for tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from samcl_core.benchmarks.methods import parse_method, titles_of
from samcl_core.errors import DataError
from samcl_core.evaluation.rmatrix import (
    SELECTOR_ACCURACY,
    cosam_avg,
    cosam_ff,
    cosam_last,
    domains_of,
    natural_retention,
    pivot,
    samcl_aa,
    samcl_fm,
    samcl_ft,
    unseen_gain,
)
from samcl_core.evaluation.tables import MISSING

if TYPE_CHECKING:
    from samcl_core.benchmarks.units import Cell

__all__ = [
    "COLUMNS",
    "COSAM_COLUMNS",
    "COST_COLUMNS",
    "SCORE_COLUMNS",
    "Column",
    "Stat",
    "StrategyRow",
    "cell_numbers",
    "curve",
    "domain_stats",
    "mean_frame",
    "stat_of",
    "step_numbers",
    "strategy_rows",
    "table_rows",
]


@dataclass(frozen=True)
class Column:
    """One number of a strategy in tables.

    Attributes:
        key: its name in ``cell_numbers``.
        header: above the column.
        meaning: the formula or unit, for the legend.
        digits: after the point.
        scale: what tables multiply the number with; 100 turns a share into points.
        is_bytes: shown in KiB.
        has_deviation: tables show the deviation, too; files always have it.
    """

    key: str
    header: str
    meaning: str
    digits: int = 1
    scale: float = 100.0
    is_bytes: bool = False
    has_deviation: bool = True

    def shown(self, stat: Stat | None, num_cells: int) -> str:
        """The number for people; a dash when it does not exist, and of how many cells it is when not of all."""
        if stat is None:
            return MISSING
        text = f"{stat.mean / 1024:,.1f} KiB" if self.is_bytes else _fixed(stat.mean * self.scale, self.digits)
        if self.has_deviation and not math.isnan(stat.std):
            text += f" ± {_fixed(stat.std * self.scale, self.digits)}"
        return text if stat.n == num_cells else f"{text} ({stat.n} of {num_cells})"


def _bytes(key: str, header: str, meaning: str) -> Column:
    return Column(key, header, meaning, scale=1.0, is_bytes=True, has_deviation=False)


def _fixed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero


SCORE_COLUMNS = (
    Column("aa", "AA (SAMCL)", "mean over j of R[T, j]"),
    Column("fm", "FM (SAMCL)", "mean over j of R[j, j] - R[T, j], the last domain's zero included", 2),
    Column("ft", "FT (SAMCL)", "mean over j < T of R[j, j+1]: the score on the next domain, not learnt yet"),
    Column("last", "Last (CoSAM)", "mean over j of R[T, j], which is AA"),
    Column("avg", "Avg (CoSAM)", "mean over the steps i of the mean over j <= i of R[i, j]"),
    Column("ff", "FF (CoSAM)", "mean over j < T of R[j, j] - R[T, j]", 2),
    Column("boundary_last", "Boundary IoU, Last", "Last of the boundary IoU"),
    Column("natural_retention", "Natural retention", "R[T, j] - R[0, j] on natural images; 0 when nothing is lost", 2),
    Column("unseen_gain", "Unseen gain", "R[T, j] - R[0, j] on domains that are never learnt", 2),
)
"""Scores, in points (IoU x 100)."""

COST_COLUMNS = (
    Column("selector_learnt", "Selector, learnt", "% of the test images of learnt domains that got their own module"),
    Column("selector_natural", "Selector, natural", "% of the natural images that got plain SAM"),
    Column("selector_unseen", "Selector, unseen", "% of the images of never learnt domains that got plain SAM"),
    Column("fit_ms", "Selector fit, ms", "closed form or training, with all domains, one CPU thread", 1, 1.0),
    _bytes("selector_bytes", "Selector", "the fitted selector"),
    _bytes("state_bytes_per_domain", "State a domain", "kept of one domain for later fits"),
    _bytes("state_bytes_shared", "State shared", "kept once for later fits"),
    Column("num_parameters", "Parameters", "trained weights, of all modules", 0, 1.0, has_deviation=False),
    _bytes("model_bytes", "Model", "what masks need: trained weights, and the selector's"),
    _bytes("memory_bytes", "Memory", "what only later learning needs, files of stored samples included"),
    Column("train_seconds", "Training, s", "of all domains, without the selector", 0, 1.0, has_deviation=False),
)
"""What the selector does, what is stored and how long it takes; after the last step."""

COSAM_COLUMNS = (
    Column("last", "Last-IoU", "mean over j of R[T, j]"),
    Column("avg", "Avg-IoU", "mean over the steps i of the mean over j <= i of R[i, j]"),
    Column("ff", "FF-IoU", "mean over j < T of R[j, j] - R[T, j]", 2),
    Column("boundary_last", "Last-BIoU", "the same of the boundary IoU"),
    Column("boundary_avg", "Avg-BIoU", "the same of the boundary IoU"),
    Column("boundary_ff", "FF-BIoU", "the same of the boundary IoU", 2),
    Column("natural_iou", "Natural IoU", "R[T, j] on natural images, which are never learnt"),
    Column("natural_boundary", "Natural BIoU", "the same of the boundary IoU"),
    _bytes("stored_bytes", "Stored", "model and memory"),
)
"""The columns of CoSAM's tables, in points, and what is stored."""

COLUMNS = tuple({column.key: column for column in (*COSAM_COLUMNS, *SCORE_COLUMNS, *COST_COLUMNS)}.values())
"""Every number of a cell once."""


@dataclass(frozen=True)
class Stat:
    """Mean and sample deviation (n - 1) of ``n`` numbers; the deviation of one number is NaN."""

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class StrategyRow:
    """A strategy over its cells.

    Attributes:
        strategy: its name.
        title: for people.
        family: heading of the row.
        num_cells: seeds x orders that were measured.
        numbers: key of a column to its mean and deviation; a number that does not exist is not there.
    """

    strategy: str
    title: str
    family: str
    num_cells: int
    numbers: dict[str, Stat]


def stat_of(values: Iterable[float]) -> Stat:
    """Mean and deviation of at least one number."""
    numbers = list(values)
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Stat(mean, math.nan, 1)
    return Stat(
        mean, math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)), len(numbers)
    )


# One cell -------------------------------------------------------------------------------------------------------------


def cell_numbers(cell: Cell) -> dict[str, float]:
    """Every number of ``COLUMNS`` that the cell has; scores are shares 0..1.

    A strategy that was measured before and after only (joint) has no forgetting and no transfer. Of plain SAM, which
    is the same after every step, what is 0 by definition (forgetting, retention) is left out.
    """
    order, frame = cell.order, cell.frame
    is_plain = int(frame["step"].max()) == 0
    iou, edge = (_matrix(frame, metric, order, is_plain) for metric in ("iou", "boundary_iou"))
    last, natural, unseen = len(order), domains_of(frame, "natural"), domains_of(frame, "unseen")
    functions: dict[str, Callable[[], float]] = {
        "aa": lambda: samcl_aa(iou, order),
        "ft": lambda: samcl_ft(iou, order),
        "last": lambda: cosam_last(iou, order),
        "avg": lambda: cosam_avg(iou, order),
        "boundary_last": lambda: cosam_last(edge, order),
        "boundary_avg": lambda: cosam_avg(edge, order),
        "natural_iou": lambda: _mean_of(iou, natural, last),
        "natural_boundary": lambda: _mean_of(edge, natural, last),
    }
    if not is_plain:
        functions |= {
            "fm": lambda: samcl_fm(iou, order),
            "ff": lambda: cosam_ff(iou, order),
            "boundary_ff": lambda: cosam_ff(edge, order),
            "natural_retention": lambda: natural_retention(iou, natural, last),
            "unseen_gain": lambda: unseen_gain(iou, unseen, last),
        }
    found = {key: _or_nan(function) for key, function in functions.items()}
    found |= _selector_numbers(cell) | cell.facts | _sizes(cell)
    return {column.key: found[column.key] for column in COLUMNS if math.isfinite(found.get(column.key, math.nan))}


def _mean_of(matrix: pd.DataFrame, domains: Sequence[str], step: int) -> float:
    values = [float(matrix.at[step, name]) for name in domains] if step in matrix.index else []  # type: ignore[arg-type]
    return math.fsum(values) / len(values) if values else math.nan


def _sizes(cell: Cell) -> dict[str, float]:
    """Bytes of model and memory. Cells of version 0.1 hold the size of the modules' files, and no memory."""
    facts, found = cell.facts, {}
    if "model_bytes" in facts or "module_bytes" in facts:
        found["model_bytes"] = facts.get("model_bytes", facts.get("module_bytes", 0)) + facts.get("selector_bytes", 0)
    if "state_bytes_shared" in facts:
        of_domains = facts["state_bytes_per_domain"] * len(cell.order)
        found["memory_bytes"] = facts.get("memory_bytes", of_domains + facts["state_bytes_shared"])
    elif "memory_bytes" in facts or cell.strategy in ("oracle", "naive"):
        found["memory_bytes"] = facts.get("memory_bytes", 0.0)
    if len(found) == 2:
        found["stored_bytes"] = sum(found.values())
    return found


def _matrix(frame: pd.DataFrame, metric: str, order: Sequence[str], is_plain: bool) -> pd.DataFrame:
    matrix = pivot(frame, metric, order)
    return matrix.reindex(range(len(order) + 1)).ffill() if is_plain else matrix


def _or_nan(function: Callable[[], float]) -> float:
    try:
        return function()
    except DataError:
        return math.nan


def _selector_numbers(cell: Cell) -> dict[str, float]:
    rows = cell.frame[(cell.frame["metric"] == SELECTOR_ACCURACY) & (cell.frame["step"] == len(cell.order))]
    means = rows.groupby("role")["value"].mean()
    names = {"learn": "selector_learnt", "natural": "selector_natural", "unseen": "selector_unseen"}
    return {names[str(role)]: float(value) for role, value in means.items()}


def step_numbers(cell: Cell, key: str) -> list[float]:
    """``AA_i``, ``FM_i`` or ``FT_i`` (``key`` is ``aa``, ``fm`` or ``ft``) for i = 1..T; NaN where there is none.

    Plain SAM has a transfer, and nothing that it could forget.
    """
    is_plain = int(cell.frame["step"].max()) == 0
    iou = _matrix(cell.frame, "iou", cell.order, is_plain)
    functions: dict[str, Callable[..., float]] = {"aa": samcl_aa, "fm": samcl_fm, "ft": samcl_ft}

    def at(step: int) -> float:
        if is_plain and key == "fm":
            return math.nan
        return _or_nan(lambda: functions[key](iou, cell.order, step))

    return [at(step) for step in range(1, len(cell.order) + 1)]


def curve(cell: Cell) -> list[float]:
    """Mean IoU of the domains learnt so far, ``AA_i`` for i = 1..T; NaN where a step was not measured."""
    return step_numbers(cell, "aa")


# Many cells -----------------------------------------------------------------------------------------------------------


def strategy_rows(cells: Sequence[Cell]) -> list[StrategyRow]:
    """One row a strategy that has a cell, families together.

    Plain SAM is measured once a seed; its transfer and its average over the steps are means over all orders.
    """
    orders = list(dict.fromkeys(cell.order for cell in cells))
    rows = []
    for strategy, title in titles_of([cell.strategy for cell in cells]).items():
        own = [_over_orders(cell, orders) for cell in cells if cell.strategy == strategy]
        values = {column.key: [numbers[column.key] for numbers in own if column.key in numbers] for column in COLUMNS}
        numbers = {key: stat_of(found) for key, found in values.items() if found}
        rows.append(StrategyRow(strategy, title, parse_method(strategy).family, len(own), numbers))
    return rows


def _over_orders(cell: Cell, orders: Sequence[tuple[str, ...]]) -> dict[str, float]:
    if int(cell.frame["step"].max()) > 0:
        return cell_numbers(cell)
    numbers = [cell_numbers(replace(cell, order=order)) for order in orders]
    return {key: math.fsum(found[key] for found in numbers) / len(numbers) for key in numbers[0]}


def table_rows(rows: Sequence[StrategyRow], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table for people: the strategy's title, then the columns."""
    header = ["strategy", *(column.header for column in columns)]
    body = [
        [row.title, *(column.shown(row.numbers.get(column.key), row.num_cells) for column in columns)] for row in rows
    ]
    return header, body


def domain_stats(cells: Sequence[Cell], domain: str) -> Stat | None:
    """IoU of a domain after the last step that was measured, over the cells; ``None`` when it was never scored."""
    values = []
    for cell in cells:
        last = int(cell.frame["step"].max())
        wanted = (cell.frame["domain"] == domain) & (cell.frame["metric"] == "iou") & (cell.frame["step"] == last)
        values += cell.frame.loc[wanted, "value"].tolist()
    return stat_of(values) if values else None


def mean_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """The long form with the mean over cells of the same order in each place."""
    together = pd.concat([cell.frame for cell in cells], ignore_index=True)
    keys = ["step", "domain", "metric", "role"]
    return together.groupby(keys, as_index=False).agg(value=("value", "mean"), n=("n", "max"))
