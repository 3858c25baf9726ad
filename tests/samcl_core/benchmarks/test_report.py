"""Tables and plots of a benchmark: numbers derived here by hand, what is missing is a dash, same input same bytes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from samcl_core.benchmarks import Cell, StreamSpec, read_cells
from samcl_core.benchmarks.report import build_report, machine_kind, planned_cells
from samcl_core.benchmarks.summary import (
    COST_COLUMNS,
    SCORE_COLUMNS,
    cell_numbers,
    curve,
    mean_frame,
    stat_of,
    strategy_rows,
    table_rows,
)
from samcl_core.errors import DataError
from samcl_core.evaluation.rmatrix import COLUMNS, write_r_matrix
from samcl_core.files import digest_files

SPEC = StreamSpec(
    name="three",
    title="Three domains",
    size_px=64,
    num_train=4,
    num_test=2,
    domains={
        "A": {"scene": "polyp", "description": "low-contrast blobs on mucosa-like texture"},
        "B": {"scene": "shadow"},
        "C": {"scene": "crack"},
        "Photos": {"scene": "natural", "role": "natural"},
        "Cells": {"scene": "cells", "role": "unseen"},
    },
    orders={"default": ("A", "B", "C"), "reverse": ("C", "B", "A")},
    params={"backbone": {"name": "tiny"}},
)
PLAIN = {"A": 0.2, "B": 0.3, "C": 0.1, "Photos": 0.5, "Cells": 0.4}
FORGETS = {
    0: PLAIN,
    1: {"A": 0.8, "B": 0.35, "C": 0.15, "Photos": 0.49, "Cells": 0.42},
    2: {"A": 0.7, "B": 0.9, "C": 0.2, "Photos": 0.49, "Cells": 0.42},
    3: {"A": 0.6, "B": 0.85, "C": 0.7, "Photos": 0.48, "Cells": 0.43},
}


def frame_of(rows: dict[int, dict[str, float]], *, accuracy: float | None = None) -> pd.DataFrame:
    cells = [
        (step, name, metric, value if metric == "iou" else value / 2, 2, SPEC.domains[name].role)
        for step, values in rows.items()
        for name, value in values.items()
        for metric in ("iou", "boundary_iou")
    ]
    if accuracy is not None:
        cells += [(3, name, "selector_accuracy", accuracy, 2, SPEC.domains[name].role) for name in PLAIN]
    return pd.DataFrame(cells, columns=list(COLUMNS))


def write_cell(
    root: Path,
    strategy: str,
    rows: dict[int, dict[str, float]],
    *,
    seed: int = 0,
    order: str = "default",
    accuracy: float | None = None,
    **facts: float,
) -> None:
    meta = {"strategy": strategy, "order_name": order, "order": SPEC.orders[order], "seed": seed, "facts": facts}
    path = root / "cells" / strategy / order / f"seed-{seed}.parquet"
    write_r_matrix(path, frame_of(rows, accuracy=accuracy), {"cell": json.dumps(meta)})


def with_last(**values: float) -> dict[int, dict[str, float]]:
    return {**FORGETS, 3: {**FORGETS[3], **values}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cell(tmp_path, "zero_shot", {0: PLAIN})
    write_cell(tmp_path, "joint", {0: PLAIN, 3: FORGETS[3]}, num_parameters=1000.0)
    write_cell(tmp_path, "naive", FORGETS)
    write_cell(tmp_path, "naive", with_last(A=0.5), seed=1)
    write_cell(tmp_path, "bank_gaussian", FORGETS, accuracy=0.75, fit_ms=2.5, state_bytes_per_domain=2048.0)
    write_cell(tmp_path, "bank_gaussian", FORGETS, accuracy=0.75, seed=1, fit_ms=3.5)
    return tmp_path


def cells_of(root: Path, strategy: str) -> list[Cell]:
    return [cell for cell in read_cells(root) if cell.strategy == strategy]


def test_the_numbers_of_a_cell_are_the_formulas(root: Path) -> None:
    numbers = cell_numbers(cells_of(root, "bank_gaussian")[0])
    last = (0.6 + 0.85 + 0.7) / 3
    expected = {
        "aa": last,
        "fm": ((0.8 - 0.6) + (0.9 - 0.85) + 0) / 3,
        "ft": (0.35 + 0.2) / 2,
        "last": last,
        "avg": (0.8 + (0.7 + 0.9) / 2 + last) / 3,
        "ff": ((0.8 - 0.6) + (0.9 - 0.85)) / 2,
        "boundary_last": last / 2,
        "boundary_avg": (0.8 + (0.7 + 0.9) / 2 + last) / 6,
        "boundary_ff": ((0.8 - 0.6) + (0.9 - 0.85)) / 4,
        "natural_iou": 0.48,
        "natural_boundary": 0.24,
        "natural_retention": 0.48 - 0.5,
        "unseen_gain": 0.43 - 0.4,
        "selector_learnt": 0.75,
        "selector_natural": 0.75,
        "selector_unseen": 0.75,
        "fit_ms": 2.5,
        "state_bytes_per_domain": 2048,
    }
    assert numbers == pytest.approx(expected)


def test_what_a_strategy_does_not_have_is_left_out(root: Path) -> None:
    (joint,), (plain,) = cells_of(root, "joint"), cells_of(root, "zero_shot")
    assert set(cell_numbers(joint)) == {
        *("aa", "last", "boundary_last", "natural_retention", "natural_iou", "natural_boundary"),
        *("unseen_gain", "num_parameters"),
    }
    numbers = cell_numbers(plain)
    assert set(numbers) == {
        *("aa", "ft", "last", "avg", "boundary_last", "boundary_avg", "natural_iou", "natural_boundary")
    }
    assert numbers["aa"] == pytest.approx(0.2)
    assert numbers["ft"] == pytest.approx((0.3 + 0.1) / 2)
    assert numbers["avg"] == pytest.approx((0.2 + 0.25 + 0.2) / 3)


def test_curves_go_over_the_domains_so_far(root: Path) -> None:
    assert curve(cells_of(root, "naive")[0]) == pytest.approx([0.8, 0.8, (0.6 + 0.85 + 0.7) / 3])
    assert curve(cells_of(root, "zero_shot")[0]) == pytest.approx([0.2, 0.25, 0.2])
    before, between, after = curve(cells_of(root, "joint")[0])
    assert math.isnan(before) and math.isnan(between)
    assert after == pytest.approx(0.7166667)


def test_mean_and_deviation() -> None:
    stat = stat_of([0.1, 0.3])
    assert (stat.mean, stat.std, stat.n) == (pytest.approx(0.2), pytest.approx(0.1 * math.sqrt(2)), 2)
    assert math.isnan(stat_of([1.0]).std)


def test_tables_show_points_deviations_and_dashes(root: Path) -> None:
    rows = {row.strategy: row for row in strategy_rows(read_cells(root))}
    assert list(rows) == ["zero_shot", "naive", "joint", "bank_gaussian"]
    header, body = table_rows(list(rows.values()), SCORE_COLUMNS)
    shown = {name: dict(zip(header, line, strict=True)) for name, line in zip(rows, body, strict=True)}
    assert header[1:4] == ["AA (SAMCL)", "FM (SAMCL)", "FT (SAMCL)"]
    # AA 71.67 and 68.33; FM 8.33 and 11.67
    assert shown["naive"]["AA (SAMCL)"] == "70.0 ± 2.4"
    assert shown["naive"]["FM (SAMCL)"] == "10.00 ± 2.36"
    assert shown["bank_gaussian"]["AA (SAMCL)"] == "71.7 ± 0.0"
    assert shown["bank_gaussian"]["Natural retention"] == "-2.00 ± 0.00"
    assert shown["joint"]["AA (SAMCL)"] == "71.7"
    assert shown["joint"]["FM (SAMCL)"] == "–"
    assert shown["zero_shot"]["FF (CoSAM)"] == "–"
    _, costs = table_rows([rows["bank_gaussian"]], COST_COLUMNS)
    found = dict(zip(["strategy", *(column.key for column in COST_COLUMNS)], costs[0], strict=True))
    assert found["selector_learnt"] == "75.0 ± 0.0"
    assert found["fit_ms"] == "3.0 ± 0.7"
    assert found["state_bytes_per_domain"] == "2.0 KiB (1 of 2)"
    assert found["train_seconds"] == "–"


def test_plain_sam_is_read_in_every_order(root: Path) -> None:
    write_cell(root, "naive", FORGETS, order="reverse")
    plain = strategy_rows(read_cells(root))[0]
    # B and C come next in one order, B and A in the other.
    assert plain.numbers["ft"].mean == pytest.approx(((0.3 + 0.1) / 2 + (0.3 + 0.2) / 2) / 2)
    assert (plain.num_cells, plain.numbers["ft"].n) == (1, 1)


def test_a_zero_has_no_minus() -> None:
    assert SCORE_COLUMNS[1].shown(stat_of([-1e-9]), 1) == "0.00"


def test_the_mean_of_seeds_is_taken_cell_by_cell(root: Path) -> None:
    frame = mean_frame(cells_of(root, "naive"))
    wanted = (frame["step"] == 3) & (frame["domain"] == "A") & (frame["metric"] == "iou")
    assert frame.loc[wanted, "value"].tolist() == [pytest.approx(0.55)]
    assert len(frame) == len(frame_of(FORGETS))


def test_the_report_holds_tables_plots_and_pictures(root: Path) -> None:
    (root / "benchmark.json").write_text(json.dumps({"backbone_sha256": "0123456789abcdef"}))
    files = build_report(root, SPEC, command="samcl benchmark three.yaml --seeds 0,1")
    assert [path.name for path in files] == [
        *("table.md", "samcl_table.md", "cosam_table.md", "table.csv", "cells.csv", "per_domain.md", "per_domain.csv"),
        *("comparison.png", "forgetting.png", "bytes.png"),
        *("r_matrix_naive.png", "r_matrix_bank_gaussian.png", "domains.jpg"),
    ]
    page = (root / "report" / "table.md").read_text()
    for part in ("`samcl benchmark three.yaml --seeds 0,1`", "seeds: 0, 1", "sha256 0123456789ab\n", machine_kind()):
        assert part in page
    assert "nan" not in page.lower()
    with (root / "report" / "table.csv").open() as stream:
        table = {row["strategy"]: row for row in csv.DictReader(stream)}
    assert float(table["naive"]["AA (SAMCL) mean"]) == pytest.approx(70)
    assert float(table["naive"]["AA (SAMCL) std"]) == pytest.approx(100 / 30 / math.sqrt(2))
    assert (table["joint"]["FM (SAMCL) mean"], table["joint"]["AA (SAMCL) std"]) == ("", "")
    assert table["naive"]["cells"] == "2"
    with (root / "report" / "per_domain.csv").open() as stream:
        domains = {(row["strategy"], row["domain"]): row for row in csv.DictReader(stream)}
    assert float(domains["naive", "A"]["IoU mean"]) == pytest.approx(55)
    assert float(domains["zero_shot", "Cells"]["IoU mean"]) == pytest.approx(40)
    for path in files:
        if path.suffix in {".png", ".jpg"}:
            with Image.open(path) as picture:
                picture.load()
                assert min(picture.size) > 150, path.name
    before = digest_files(root / "report")
    build_report(root, SPEC, command="samcl benchmark three.yaml --seeds 0,1")
    assert digest_files(root / "report") == before


def test_two_orders_are_two_panels(root: Path) -> None:
    write_cell(root, "naive", FORGETS, order="reverse")
    one, two = root / "one.png", root / "two.png"
    from samcl_core.benchmarks.pictures import forgetting_plot

    cells = read_cells(root)
    forgetting_plot([cell for cell in cells if cell.order_name == "default"], one)
    forgetting_plot(cells, two)
    with Image.open(one) as single, Image.open(two) as double:
        assert double.size[0] > 1.5 * single.size[0]


def lines_of(page: Path, heading: str = "") -> list[list[str]]:
    """Cells of the first table below a heading, without its rule."""
    text = page.read_text().split(heading, 1)[1] if heading else page.read_text()
    lines = text[text.index("| strategy") :].split("\n\n")[0].splitlines()
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_tables_of_both_papers_group_the_strategies(root: Path) -> None:
    write_cell(root, "ewc", FORGETS, model_bytes=3 * 1024.0, memory_bytes=1024.0)
    build_report(root, SPEC, command="x")
    header, *rows = lines_of(root / "report" / "cosam_table.md")
    names = [row[0] for row in rows]
    families = ["**zero-shot**", "**single adapter**", "**adapter pool**"]
    assert [name for name in names if name.startswith("**")] == families
    assert names.index("EWC, hq_decoder") == names.index("one module, trained in sequence") + 1
    ewc = dict(zip(header, rows[names.index("EWC, hq_decoder")], strict=True))
    # Last 71.67, Avg (80 + 80 + 71.67) / 3, FF (20 + 5) / 2; the boundary is half of it.
    assert (ewc["Last-IoU"], ewc["Avg-IoU"], ewc["FF-IoU"]) == ("71.7", "77.2", "12.50")
    assert (ewc["Last-BIoU"], ewc["FF-BIoU"], ewc["Natural IoU"], ewc["Stored"]) == ("35.8", "6.25", "48.0", "4.0 KiB")

    page = root / "report" / "samcl_table.md"
    assert page.read_text().count("## ") == 3
    header, *rows = lines_of(page, "## AA, order default")
    assert header == ["strategy", "A", "B", "C"]
    found = {row[0]: row[1:] for row in rows}
    assert found["zero-shot"] == ["20.0", "25.0", "20.0"]
    assert found["EWC, hq_decoder"] == ["80.0", "80.0", "71.7"]
    assert found["one module, trained jointly"] == ["–", "–", "71.7"]
    assert found["one module, trained in sequence"] == ["80.0 ± 0.0", "80.0 ± 0.0", "70.0 ± 2.4"]
    _, *rows = lines_of(page, "## FM, order default")
    assert {row[0]: row[1:] for row in rows}["EWC, hq_decoder"] == ["0.00", "5.00", "8.33"]
    _, *rows = lines_of(page, "## FT, order default")
    assert {row[0]: row[1:] for row in rows}["EWC, hq_decoder"] == ["–", "35.0", "27.5"]


def test_bytes_of_older_cells_are_those_of_their_files(root: Path) -> None:
    write_cell(
        root, "bank_mlp", FORGETS, module_bytes=100, selector_bytes=10, state_bytes_per_domain=5, state_bytes_shared=2
    )
    numbers = cell_numbers(cells_of(root, "bank_mlp")[0])
    assert (numbers["model_bytes"], numbers["memory_bytes"], numbers["stored_bytes"]) == (110, 3 * 5 + 2, 127)


def test_without_a_cell_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished cell"):
        planned_cells(tmp_path)
