"""The R matrix as plain rows, text, Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from samcl_core.evaluation.rmatrix import ROLES, learnt_in, pivot, validate_r_matrix

__all__ = ["MISSING", "r_matrix_csv", "r_matrix_markdown", "r_matrix_rows", "r_matrix_text", "step_name"]

MISSING = "–"
"""What stands for a cell that was not scored."""


def step_name(step: int, order: Sequence[str], fits: Sequence[int] | None = None) -> str:
    """``0 zero-shot``, or the step's number and the domains that were learnt in it (several after a back-fill)."""
    if step == 0:
        return "0 zero-shot"
    return f"{step} {', '.join(learnt_in(step, order, fits))}".rstrip()


def r_matrix_rows(
    frame: pd.DataFrame,
    metric: str,
    order: Sequence[str] = (),
    *,
    digits: int = 3,
    fits: Sequence[int] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one metric for a table on a terminal or a page.

    Args:
        frame: the long form.
        metric: for instance ``iou``.
        order: learnt domains in the order of arrival.
        digits: digits after the point.
        fits: the steps that have a row; every one when ``None``.

    Returns:
        The header (``after step``, then the domains; natural and unseen ones say so) and one list a step.
    """
    matrix = pivot(frame, metric, order)
    roles = dict(zip(frame["domain"], frame["role"], strict=True))
    names = [str(name) for name in matrix.columns]
    header = ["after step", *(name if roles[name] == "learn" else f"{name} ({roles[name]})" for name in names)]
    rows = [
        [step_name(int(step), order, fits), *(_number(value, digits) for value in values)]
        for step, values in zip(matrix.index, matrix.to_numpy().tolist(), strict=True)
    ]
    return header, rows


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"


def r_matrix_text(
    frame: pd.DataFrame,
    metric: str,
    order: Sequence[str] = (),
    *,
    digits: int = 3,
    fits: Sequence[int] | None = None,
) -> str:
    """The matrix as aligned plain text: first column to the left, numbers to the right, no colour."""
    header, rows = r_matrix_rows(frame, metric, order, digits=digits, fits=fits)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def r_matrix_markdown(
    frame: pd.DataFrame,
    metric: str,
    order: Sequence[str] = (),
    *,
    digits: int = 3,
    fits: Sequence[int] | None = None,
) -> str:
    """The matrix as a Markdown table; the score of a domain in the step that learnt it is bold."""
    header, rows = r_matrix_rows(frame, metric, order, digits=digits, fits=fits)
    columns = {name: column for column, name in enumerate(header)}
    for row in rows:
        for learnt in learnt_in(int(row[0].partition(" ")[0]), order, fits):
            if learnt in columns and row[columns[learnt]] != MISSING:
                row[columns[learnt]] = f"**{row[columns[learnt]]}**"
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def r_matrix_csv(frame: pd.DataFrame) -> str:
    """All metrics as CSV for plots: one row a step and domain, one column a metric, empty where not scored.

    Returns:
        Text with ``\\n`` line ends. Columns: step, domain, role, n, then the metrics sorted by name. Reading a
        number gives the same float64. ``n`` is the largest number of images of the row.
    """
    frame = validate_r_matrix(frame)
    if frame.empty:
        return "step,domain,role,n\n"
    wide = frame.pivot(index=["step", "role", "domain"], columns="metric", values="value").reset_index()
    counts = frame.groupby(["step", "domain"], as_index=False)["n"].max()
    wide = wide.merge(counts, on=["step", "domain"])
    wide["role"] = pd.Categorical(wide["role"], categories=ROLES, ordered=True)
    wide = wide.sort_values(["step", "role", "domain"], kind="stable")
    metrics = sorted(set(frame["metric"]))
    return str(wide[["step", "domain", "role", "n", *metrics]].to_csv(index=False, lineterminator="\n"))
