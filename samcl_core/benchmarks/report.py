"""The report of a benchmark: tables as Markdown and CSV, plots, and the pictures of the stream."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samcl_core.benchmarks.methods import titles_of
from samcl_core.benchmarks.paper_tables import cosam_page, grouped, markdown, samcl_page
from samcl_core.benchmarks.summary import (
    COLUMNS,
    COST_COLUMNS,
    SCORE_COLUMNS,
    Column,
    Stat,
    StrategyRow,
    cell_numbers,
    domain_stats,
    strategy_rows,
    table_rows,
)
from samcl_core.errors import DataError
from samcl_core.evaluation.tables import MISSING
from samcl_core.files import write_atomic

if TYPE_CHECKING:
    from samcl_core.benchmarks.streams import StreamSpec
    from samcl_core.benchmarks.units import Cell, Unit

__all__ = ["REPORT", "build_report", "machine_kind", "planned_cells", "write_tables"]

REPORT = "report"
"""Folder of the report inside the output folder."""

_HOW_TO_READ = f"""Scores in points (IoU x 100) on the test images, mean ± sample deviation over seeds and orders.
R[i, j] is domain j after step i, step 0 is plain SAM, T the last step. {MISSING} does not exist."""
_ROLES = {"learn": "", "natural": " (natural)", "unseen": " (unseen)"}


def planned_cells(root: Path, units: Sequence[Unit] | None = None) -> list[Cell]:
    """The finished cells below ``root``; with ``units`` only those of this plan.

    Raises:
        DataError: there is none.
    """
    from samcl_core.benchmarks.units import read_cells

    cells = read_cells(root)
    if units is not None:
        wanted = {unit.path(root) for unit in units}
        cells = [cell for cell in cells if cell.path in wanted]
    if not cells:
        raise DataError(f"{root} holds no finished cell of this benchmark", hint="samcl benchmark STREAM")
    return cells


def build_report(
    root: Path,
    spec: StreamSpec,
    *,
    units: Sequence[Unit] | None = None,
    command: str = "",
    device: str = "cpu",
) -> list[Path]:
    """Write the tables, plots and pictures of the finished cells into ``<root>/report``.

    Args:
        root: output folder of the benchmark.
        spec: the stream.
        units: the plan whose cells count; every cell below ``root`` when ``None``.
        command: what repeats the benchmark, for the head of the table.
        device: where it was computed, for the head of the table.

    Returns:
        The files: tables first, then plots, then pictures.

    Raises:
        DataError: no cell is finished.
    """
    from samcl_core.benchmarks.pictures import (
        bytes_plot,
        comparison_plot,
        domain_sheet,
        forgetting_plot,
        r_matrix_plots,
    )

    cells, folder = planned_cells(root, units), root / REPORT
    facts = _facts(root, spec, cells, command or f"samcl benchmark {spec.name}", device)
    files = write_tables(folder, spec, cells, facts)
    plots = {"comparison": comparison_plot, "forgetting": forgetting_plot, "bytes": bytes_plot}
    for name, plot in plots.items():
        plot(cells, folder / f"{name}.png")
    files += [folder / f"{name}.png" for name in plots]
    files += r_matrix_plots(cells, "default", folder)
    domain_sheet(root, spec, min(cell.seed for cell in cells), folder / "domains.jpg")
    return [*files, folder / "domains.jpg"]


def _facts(root: Path, spec: StreamSpec, cells: Sequence[Cell], command: str, device: str) -> dict[str, str]:
    """What the head of the table says, in its order."""
    orders = list(dict.fromkeys(cell.order_name for cell in cells))
    record = root / "benchmark.json"
    sha256 = json.loads(record.read_text(encoding="utf-8"))["backbone_sha256"][:12] if record.is_file() else MISSING
    sizes = f"{spec.size_px} px, {spec.num_train} training and {spec.num_test} test images a domain"
    if not spec.is_drawn:
        counts = {cell.order: cell.frame.drop_duplicates("domain") for cell in cells[:1]}
        sizes = ", ".join(f"{row.domain} {row.n}" for rows in counts.values() for row in rows.itertuples())
        sizes = f"test images: {sizes}"
    return {
        "command": f"`{command}`",
        "stream": f"{spec.name}: {sizes}",
        "seeds": ", ".join(map(str, sorted({cell.seed for cell in cells}))),
        "orders": "; ".join(f"{name} ({', '.join(spec.order(name))})" for name in orders),
        "backbone": f"{spec.params_of(0).backbone.name}, sha256 {sha256}",
        "machine": machine_kind(device),
    }


def machine_kind(device: str = "cpu") -> str:
    """The kind of processor, the number of cores this process may use, and the GPU when ``device`` is one."""
    path, found = Path("/proc/cpuinfo"), None
    if path.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    name = found.group(1) if found else platform.processor() or platform.machine()
    name = " ".join(re.sub(r"\((R|TM)\)|\bCPU\b|@.*", " ", name).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{name}, {cores} core{'s' if cores > 1 else ''}"
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)}; {text}"
    return f"{text}, no GPU"


# Tables ---------------------------------------------------------------------------------------------------------------


def write_tables(folder: Path, spec: StreamSpec, cells: Sequence[Cell], facts: Mapping[str, str]) -> list[Path]:
    """Write ``table``, ``samcl_table``, ``cosam_table`` and ``per_domain`` as pages, and files of all numbers."""
    rows, titles = strategy_rows(cells), titles_of([cell.strategy for cell in cells])
    head = "\n".join(f"- {name}: {text}" for name, text in facts.items())
    texts = {
        "table.md": _table_page(spec, rows, head),
        "samcl_table.md": samcl_page(spec.title, head, cells),
        "cosam_table.md": cosam_page(spec.title, head, rows),
        "table.csv": _table_csv(rows, cells),
        "cells.csv": _cells_csv(cells),
        "per_domain.md": _domain_page(spec, cells, titles, head),
        "per_domain.csv": _domain_csv(spec, cells, titles),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def _table_page(spec: StreamSpec, rows: Sequence[StrategyRow], head: str) -> str:
    def table(columns: Sequence[Column]) -> str:
        header, body = table_rows(rows, columns)
        return markdown(header, grouped([row.family for row in rows], body))

    return (
        "\n\n".join(
            [
                f"# {spec.title}",
                head,
                _HOW_TO_READ,
                "## Accuracy and forgetting",
                table(SCORE_COLUMNS),
                "## Selector and cost",
                table(COST_COLUMNS),
                "\n".join(f"- **{column.header}**: {column.meaning}" for column in (*SCORE_COLUMNS, *COST_COLUMNS)),
            ]
        )
        + "\n"
    )


def _table_csv(rows: Sequence[StrategyRow], cells: Sequence[Cell]) -> str:
    """One row a strategy; scores in points, percent and bytes as in the page, but with all digits."""
    columns = COLUMNS
    parts = [f"{_csv_header(column)} {part}" for column in columns for part in ("mean", "std")]
    lines: list[list[object]] = [["strategy", "title", "cells", "seeds", "orders", *parts]]
    for row in rows:
        own = [cell for cell in cells if cell.strategy == row.strategy]
        counts = [row.num_cells, len({cell.seed for cell in own}), len({cell.order_name for cell in own})]
        numbers = [value for column in columns for value in _csv_stat(row.numbers.get(column.key), column.scale)]
        lines.append([row.strategy, row.title, *counts, *numbers])
    return _csv(lines)


def _csv_header(column: Column) -> str:
    return f"{column.header}, bytes" if column.is_bytes else column.header


def _csv_stat(stat: Stat | None, scale: float) -> list[object]:
    return ["", ""] if stat is None else [stat.mean * scale, "" if math.isnan(stat.std) else stat.std * scale]


def _cells_csv(cells: Sequence[Cell]) -> str:
    """One row a cell, for statistics of one's own."""
    columns = COLUMNS
    lines: list[list[object]] = [["strategy", "order", "seed", *(_csv_header(column) for column in columns)]]
    for cell in cells:
        numbers = cell_numbers(cell)
        values = [numbers[column.key] * column.scale if column.key in numbers else "" for column in columns]
        lines.append([cell.strategy, cell.order_name, cell.seed, *values])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


_IOU = Column("iou", "IoU", "")


def _domain_page(spec: StreamSpec, cells: Sequence[Cell], titles: dict[str, str], head: str) -> str:
    header = ["strategy", *(f"{name}{_ROLES[domain.role]}" for name, domain in spec.domains.items())]
    rows = []
    for strategy, title in titles.items():
        if own := [cell for cell in cells if cell.strategy == strategy]:
            rows.append([title, *(_IOU.shown(domain_stats(own, name), len(own)) for name in spec.domains)])
    text = "IoU x 100 on the test images after the last step, mean ± sample deviation over seeds and orders."
    return "\n\n".join([f"# {spec.title}: each domain", head, text, markdown(header, rows)]) + "\n"


def _domain_csv(spec: StreamSpec, cells: Sequence[Cell], titles: dict[str, str]) -> str:
    lines: list[list[object]] = [["strategy", "domain", "role", "cells", "IoU mean", "IoU std"]]
    for strategy in titles:
        own = [cell for cell in cells if cell.strategy == strategy]
        for name, domain in spec.domains.items() if own else ():
            stat = domain_stats(own, name)
            lines.append([strategy, name, domain.role, stat.n if stat else 0, *_csv_stat(stat, _IOU.scale)])
    return _csv(lines)
