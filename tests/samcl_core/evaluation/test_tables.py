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
