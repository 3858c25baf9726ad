"""The R matrix as text."""

from __future__ import annotations

import io
import textwrap

import pandas as pd

from samcl_core.evaluation.rmatrix import COLUMNS
from samcl_core.evaluation.tables import r_matrix_csv, r_matrix_markdown, r_matrix_rows, r_matrix_text, step_name

ORDER = ("Kvasir", "ISIC")
FRAME = pd.DataFrame(
    [
        (0, "Kvasir", "iou", 0.25, 20, "learn"),
        (0, "COCO", "iou", 0.5, 10, "natural"),
        (0, "COCO", "mae", 0.1, 10, "natural"),
        (1, "Kvasir", "iou", 0.1 + 0.2, 20, "learn"),
        (1, "ISIC", "iou", 0.125, 30, "learn"),
        (1, "COCO", "iou", 0.5, 10, "natural"),
        (2, "ISIC", "iou", 1.0, 30, "learn"),
    ],
    columns=list(COLUMNS),
)


def test_step_names() -> None:
    assert [step_name(step, ORDER) for step in range(4)] == ["0 zero-shot", "1 Kvasir", "2 ISIC", "3"]


def test_rows() -> None:
    header, rows = r_matrix_rows(FRAME, "iou", ORDER, digits=2)
    assert header == ["after step", "Kvasir", "ISIC", "COCO (natural)"]
    assert rows == [
        ["0 zero-shot", "0.25", "–", "0.50"],
        ["1 Kvasir", "0.30", "0.12", "0.50"],
        ["2 ISIC", "–", "1.00", "–"],
    ]


def test_text_is_aligned() -> None:
    expected = """\
        after step   Kvasir   ISIC  COCO (natural)
        0 zero-shot   0.250      –           0.500
        1 Kvasir      0.300  0.125           0.500
        2 ISIC            –  1.000               –"""
    assert r_matrix_text(FRAME, "iou", ORDER) == textwrap.dedent(expected)


def test_markdown_marks_the_step_that_learnt_a_domain() -> None:
    assert r_matrix_markdown(FRAME, "iou", ORDER).splitlines() == [
        "| after step | Kvasir | ISIC | COCO (natural) |",
        "| --- | ---: | ---: | ---: |",
        "| 0 zero-shot | 0.250 | – | 0.500 |",
        "| 1 Kvasir | **0.300** | 0.125 | 0.500 |",
        "| 2 ISIC | – | **1.000** | – |",
    ]


def test_a_back_fill_is_one_row_with_all_its_domains() -> None:
    order = ("A", "B", "C")
    values = [(0, "A", 0.1), (0, "B", 0.2), (0, "C", 0.3), (3, "A", 0.7), (3, "B", 0.8), (3, "C", 0.9)]
    rows = [(step, name, "iou", value, 2, "learn") for step, name, value in values]
    frame = pd.DataFrame(rows, columns=["step", "domain", "metric", "value", "n", "role"])
    assert step_name(3, order, (1, 3)) == "3 B, C"
    _, (_, last) = r_matrix_rows(frame, "iou", order, fits=(3,))
    assert last == ["3 A, B, C", "0.700", "0.800", "0.900"]
    page = r_matrix_markdown(frame, "iou", order, fits=(1, 3)).splitlines()[-1]
    assert page == "| 3 B, C | 0.700 | **0.800** | **0.900** |"


def test_csv_keeps_every_digit() -> None:
    text = r_matrix_csv(FRAME.sample(frac=1, random_state=0))
    assert text == r_matrix_csv(FRAME) and "\r" not in text
    assert text.splitlines()[:3] == [
        "step,domain,role,n,iou,mae",
        "0,Kvasir,learn,20,0.25,",
        "0,COCO,natural,10,0.5,0.1",
    ]
    back = pd.read_csv(io.StringIO(text), dtype=str)
    assert len(back) == 6 and float(back.loc[3, "iou"]) == 0.1 + 0.2
    assert r_matrix_csv(FRAME.head(0)) == "step,domain,role,n\n"
