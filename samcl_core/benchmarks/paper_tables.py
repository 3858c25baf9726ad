"""Tables shaped like those of the two papers: SAMCL's after each step, CoSAM's over the whole stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from samcl_core.benchmarks.methods import parse_method, titles_of
from samcl_core.benchmarks.summary import COSAM_COLUMNS, Column, StrategyRow, stat_of, step_numbers
from samcl_core.evaluation.tables import MISSING

if TYPE_CHECKING:
    from samcl_core.benchmarks.units import Cell

__all__ = ["cosam_page", "grouped", "markdown", "samcl_page"]

_STEPWISE = (
    Column("aa", "AA", "AA_i: mean over j <= i of R[i, j]"),
    Column("fm", "FM", "FM_i: mean over j <= i of R[j, j] - R[i, j], the zero of the domain just learnt included", 2),
    Column("ft", "FT", "FT_i: mean over j < i of R[j, j+1]: the score on the next domain, not learnt yet"),
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grouped(families: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """``rows`` with the name of their family as a line of its own above the first of each.

    Args:
        families: one a row; equal ones stand together.
        rows: the table's, at least one column each.
    """
    lines: list[list[str]] = []
    for place, (family, row) in enumerate(zip(families, rows, strict=True)):
        if place == 0 or families[place - 1] != family:
            lines.append([f"**{family}**", *[""] * (len(row) - 1)])
        lines.append(list(row))
    return lines


def cosam_page(title: str, head: str, rows: Sequence[StrategyRow]) -> str:
    """Last, Avg and FF of IoU and boundary IoU, the natural images, and what is stored: one row a strategy."""
    header = ["strategy", *(column.header for column in COSAM_COLUMNS)]
    body = [[row.title, *(c.shown(row.numbers.get(c.key), row.num_cells) for c in COSAM_COLUMNS)] for row in rows]
    legend = "\n".join(f"- **{column.header}**: {column.meaning}" for column in COSAM_COLUMNS)
    text = (
        "As CoSAM reports (arXiv 2412.06418), in points (IoU x 100): mean ± sample deviation over seeds and orders. "
        "FF is better when it is low."
    )
    table = markdown(header, grouped([row.family for row in rows], body))
    return "\n\n".join([f"# {title}: CoSAM's table", head, text, table, legend]) + "\n"


def samcl_page(title: str, head: str, cells: Sequence[Cell]) -> str:
    """AA, FM and FT after each step, one table each for every order."""
    text = (
        "As SAMCL reports (arXiv 2412.05012), in points (IoU x 100): mean ± sample deviation over the seeds after the "
        f"domain of each column was learnt. {MISSING} does not exist: nothing is forgotten or unseen then."
    )
    legend = "\n".join(f"- **{column.header}**: {column.meaning}" for column in _STEPWISE)
    parts = [f"# {title}: SAMCL's tables", head, text, legend]
    for name, order in _orders(cells).items():
        for column in _STEPWISE:
            header, body, families = _stepwise(cells, column, name, order)
            parts += [f"## {column.header}, order {name}", markdown(header, grouped(families, body))]
    return "\n\n".join(parts) + "\n"


def _orders(cells: Sequence[Cell]) -> dict[str, tuple[str, ...]]:
    return {cell.order_name: cell.order for cell in cells}


def _stepwise(
    cells: Sequence[Cell], column: Column, order_name: str, order: tuple[str, ...]
) -> tuple[list[str], list[list[str]], list[str]]:
    body, families = [], []
    for strategy, title in titles_of([cell.strategy for cell in cells]).items():
        own = [_in_order(cell, order_name, order) for cell in cells if cell.strategy == strategy]
        values = [step_numbers(cell, column.key) for cell in own if cell is not None]
        if not values:
            continue
        found = [[value for value in at if not math.isnan(value)] for at in zip(*values, strict=True)]
        body.append([title, *(column.shown(stat_of(at) if at else None, len(at)) for at in found)])
        families.append(parse_method(strategy).family)
    return ["strategy", *order], body, families


def _in_order(cell: Cell, order_name: str, order: tuple[str, ...]) -> Cell | None:
    """The cell as one of this order: what does not depend on the order belongs to all of them."""
    if cell.order_name == order_name:
        return cell
    return replace(cell, order=order) if parse_method(cell.strategy).is_orderless else None
