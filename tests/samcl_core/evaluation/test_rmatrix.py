"""The R matrix: its stored form, and every function on a matrix written by hand and on the recorded numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from samcl_core.errors import DataError
from samcl_core.evaluation import rmatrix
from samcl_core.evaluation.rmatrix import (
    cosam_avg,
    cosam_ff,
    cosam_last,
    domains_of,
    gem_bwt,
    gem_fwt,
    learnt_in,
    mammoth_forgetting,
    merge_steps,
    natural_retention,
    pivot,
    read_metadata,
    read_r_matrix,
    rwalk_forgetting,
    samcl_aa,
    samcl_fm,
    samcl_ft,
    score_cells,
    summarize,
    unseen_gain,
    validate_r_matrix,
    write_r_matrix,
    zero_shot_mean,
)

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "forgetting.npz")
ORDER = ("A", "B", "C")
ROLE = {"A": "learn", "B": "learn", "C": "learn", "N": "natural", "U": "unseen", "V": "unseen"}
R = pd.DataFrame(
    {
        "A": [0.1, 0.8, 0.7, 0.75],
        "B": [0.2, 0.3, 0.9, 0.6],
        "C": [0.3, 0.4, 0.5, 0.7],
        "N": [0.9, 0.9, 0.8, 0.85],
        "U": [0.5, 0.5, 0.6, 0.7],
        "V": [0.4, 0.4, 0.4, 0.5],
    }
).rename_axis(index="step", columns="iou")
"""Rows are steps 0..3, columns domains: written by hand, all numbers below are computed by hand from it."""


def long_form(matrix: pd.DataFrame = R, metric: str = "iou", n: int = 10) -> pd.DataFrame:
    rows = [
        (int(step), str(name), metric, float(matrix.loc[step, name]), n, ROLE[name])
        for step in matrix.index
        for name in matrix.columns
    ]
    return pd.DataFrame(rows, columns=list(rmatrix.COLUMNS))


# Functions on the hand-written matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (zero_shot_mean, (0.1 + 0.2 + 0.3) / 3),
        (samcl_aa, (0.75 + 0.6 + 0.7) / 3),
        (samcl_fm, (0.05 + 0.3 + 0.0) / 3),
        (samcl_ft, (0.3 + 0.5) / 2),
        (cosam_last, (0.75 + 0.6 + 0.7) / 3),
        (cosam_avg, (0.8 + (0.7 + 0.9) / 2 + (0.75 + 0.6 + 0.7) / 3) / 3),
        (cosam_ff, (0.05 + 0.3) / 2),
        (gem_bwt, -(0.05 + 0.3) / 2),
        (gem_fwt, ((0.3 - 0.2) + (0.5 - 0.3)) / 2),
        (rwalk_forgetting, ((0.8 - 0.75) + (0.9 - 0.6)) / 2),
        (mammoth_forgetting, ((0.8 - 0.75) + (0.9 - 0.6)) / 2),
    ],
)
def test_after_the_last_step(function: object, expected: float) -> None:
    assert callable(function)
    assert function(R, ORDER) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "aa", "fm", "zero"), [(1, 0.8, 0.0, 0.1), (2, 0.8, 0.05, 0.15), (3, 2.05 / 3, 0.35 / 3, 0.2)]
)
def test_after_each_step(step: int, aa: float, fm: float, zero: float) -> None:
    assert samcl_aa(R, ORDER, step) == pytest.approx(aa)
    assert samcl_fm(R, ORDER, step) == pytest.approx(fm)
    assert zero_shot_mean(R, ORDER, step) == pytest.approx(zero)


def test_forward_transfer_after_each_step() -> None:
    assert math.isnan(samcl_ft(R, ORDER, 1))
    assert samcl_ft(R, ORDER, 2) == 0.3
    assert samcl_ft(R, ORDER, 3) == pytest.approx(0.4)


def test_maximum_based_forgetting_differs_in_the_rows_it_looks_at() -> None:
    rising = pd.DataFrame({"A": [0.0, 0.5, 0.6, 0.9], "B": [0.0, 0.8, 0.7, 0.6], "C": [0.0, 0.0, 0.0, 0.5]})
    # A: best earlier 0.6, best at all 0.9. B: 0.8 was scored before B was learnt (row 2).
    assert rwalk_forgetting(rising, ORDER) == pytest.approx(((0.6 - 0.9) + (0.8 - 0.6)) / 2)
    assert mammoth_forgetting(rising, ORDER) == pytest.approx(((0.9 - 0.9) + (0.7 - 0.6)) / 2)
    assert cosam_ff(rising, ORDER) == pytest.approx(((0.5 - 0.9) + (0.7 - 0.6)) / 2)


def test_natural_and_unseen() -> None:
    assert natural_retention(R, ["N"], 3) == pytest.approx(-0.05)
    assert natural_retention(R, ["N"], 0) == 0
    assert unseen_gain(R, ["U", "V"], 3) == pytest.approx((0.2 + 0.1) / 2)
    assert math.isnan(natural_retention(R, [], 3)) and math.isnan(unseen_gain(R, [], 3))


@pytest.mark.parametrize("function", [samcl_ft, cosam_ff, gem_bwt, gem_fwt, rwalk_forgetting, mammoth_forgetting])
def test_one_domain_has_no_forgetting_and_no_transfer(function: object) -> None:
    assert callable(function)
    assert math.isnan(function(R, ["A"]))


@pytest.mark.parametrize(("order", "step"), [((), None), (ORDER, 0), ((), 2)])
def test_no_step_is_an_error(order: tuple[str, ...], step: int | None) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of both"):
        samcl_aa(R, order, step)


def test_a_missing_cell_is_named() -> None:
    holes = R.copy()
    holes.loc[3, "B"] = math.nan
    for function in (samcl_aa, samcl_fm, cosam_last, cosam_avg, cosam_ff, gem_bwt, rwalk_forgetting):
        with pytest.raises(DataError, match="no iou of domain B at step 3\n  next: samcl"):
            function(holes, ORDER)
    with pytest.raises(DataError, match="no iou of domain D at step 3"):
        samcl_aa(R, ("A", "B", "D"))
    with pytest.raises(DataError, match="no iou of domain A at step 4"):
        samcl_aa(R, ORDER, 4)
    assert samcl_ft(holes, ORDER) == pytest.approx(0.4), "FT does not use this cell"


BACK_FILL = pd.DataFrame(
    {
        "A": [0.1, 0.8, 0.75, 0.7],
        "B": [0.2, 0.3, 0.6, 0.65],
        "C": [0.3, 0.4, 0.7, 0.5],
        "D": [0.4, math.nan, 0.45, 0.9],
    },
    index=[0, 1, 3, 4],
).rename_axis(index="step", columns="iou")
"""A alone, then B and C with one fit, then D: row 2 does not exist."""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (samcl_fm, ((0.8 - 0.7) + (0.6 - 0.65) + (0.7 - 0.5) + 0.0) / 4),
        (samcl_ft, (0.3 + 0.4 + 0.45) / 3),
        (cosam_avg, (0.8 + (0.75 + 0.6 + 0.7) / 3 + (0.7 + 0.65 + 0.5 + 0.9) / 4) / 3),
        (cosam_ff, ((0.8 - 0.7) + (0.6 - 0.65) + (0.7 - 0.5)) / 3),
        (gem_bwt, -((0.8 - 0.7) + (0.6 - 0.65) + (0.7 - 0.5)) / 3),
        (gem_fwt, ((0.3 - 0.2) + (0.4 - 0.3) + (0.45 - 0.4)) / 3),
        (rwalk_forgetting, ((0.8 - 0.7) + (0.6 - 0.65) + (0.7 - 0.5)) / 3),
        (mammoth_forgetting, ((0.8 - 0.7) + (0.65 - 0.65) + (0.7 - 0.5)) / 3),
    ],
)
def test_a_back_fill_is_learnt_in_its_last_row(function: object, expected: float) -> None:
    assert callable(function)
    assert function(BACK_FILL, tuple("ABCD"), fits=(1, 3, 4)) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DataError, match=r"no iou of domain . at step 2"):
        function(BACK_FILL, tuple("ABCD"))


def test_a_back_fill_at_the_end_or_the_start() -> None:
    order = tuple("ABC")
    assert samcl_fm(BACK_FILL, order, fits=(1, 3)) == pytest.approx((0.8 - 0.75) / 3)
    assert cosam_ff(BACK_FILL, order, fits=(1, 3)) == pytest.approx(0.8 - 0.75), "B and C were just learnt"
    assert samcl_fm(BACK_FILL, order, fits=(3,)) == 0
    for function in (samcl_ft, cosam_ff, gem_bwt, gem_fwt, rwalk_forgetting, mammoth_forgetting):
        assert math.isnan(function(BACK_FILL, order, fits=(3,))), function


def test_every_step_as_a_row_is_the_default() -> None:
    for function in (samcl_fm, samcl_ft, cosam_avg, cosam_ff, gem_bwt, gem_fwt, rwalk_forgetting, mammoth_forgetting):
        assert function(R, ORDER, fits=(1, 2, 3)) == function(R, ORDER)


def test_what_a_row_learnt() -> None:
    assert [learnt_in(step, "ABCD", (1, 3, 4)) for step in (0, 1, 3, 4, 5)] == [(), ("A",), ("B", "C"), ("D",), ()]
    assert learnt_in(2, ORDER) == ("B",)


# The recorded numbers of the published code ---------------------------------------------------------------------------


def recorded_matrix(name: str, column: int) -> pd.DataFrame:
    """Row and task k of the recording are step and domain k + 1; entries beyond task = now + 1 mean nothing."""
    values = GOLDEN[name][:, :, column].astype(np.float64)
    now, task = np.indices(values.shape)
    values[task > now + 1] = math.nan
    size = len(values)
    return pd.DataFrame(values, index=range(1, size + 1), columns=[f"D{k}" for k in range(size)])


RECORDED = [("matrix5", f"five_now{now}", now + 1, 5) for now in range(5)] + [("matrix6", "six_now5_length4", 6, 5)]


@pytest.mark.parametrize(("matrix", "name", "step", "domains"), RECORDED)
@pytest.mark.parametrize("column", [0, 1, 2], ids=["iou", "f1", "mae"])
def test_equal_to_the_published_code(matrix: str, name: str, step: int, domains: int, column: int, parity: Any) -> None:
    found, order = recorded_matrix(matrix, column), [f"D{k}" for k in range(domains)]
    expected = GOLDEN[name][:, column]
    functions = (samcl_aa, samcl_fm, samcl_ft)
    ours = [function(found, order, step) for function in functions]
    if step == 1:
        assert math.isnan(ours[2]) and expected[2] == 0, "the published code prints 0 where there is nothing to average"
        ours[2] = 0.0
    # Their sums are float32.
    parity("forgetting: AA, FM, FT", "both", ours, expected, rtol=1e-6, atol=2e-7)


def test_every_recording_is_compared() -> None:
    assert {name for name in GOLDEN.files if not name.startswith("matrix")} == {name for _, name, _, _ in RECORDED}


# Stored form ----------------------------------------------------------------------------------------------------------


def test_score_cells_are_exact_means_in_any_order() -> None:
    values = [0.1, 0.7, 1e-17, 0.2, 0.9]
    one = score_cells(2, "A", "learn", {"iou": values, "mae": [0.5]})
    two = score_cells(2, "A", "learn", {"mae": [0.5], "iou": values[::-1]})
    pd.testing.assert_frame_equal(one, two)
    assert one["value"].tolist() == [math.fsum(values) / 5, 0.5] and one["n"].tolist() == [5, 1]


@pytest.mark.parametrize(("values", "message"), [([], "no image was scored"), ([math.nan], "not finite")])
def test_score_cells_without_a_score(values: list[float], message: str) -> None:
    with pytest.raises(DataError, match=f"step 1, A, iou: .*{message}"):
        score_cells(1, "A", "learn", {"iou": values})


def test_validate_sorts_and_types() -> None:
    shuffled = long_form().sample(frac=1, random_state=0)
    shuffled["step"] = shuffled["step"].astype("float64")
    valid = validate_r_matrix(shuffled)
    pd.testing.assert_frame_equal(valid, validate_r_matrix(long_form()))
    assert list(valid.columns) == list(rmatrix.COLUMNS)
    assert [str(valid[name].dtype) for name in ("step", "value", "n")] == ["int64", "float64", "int64"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("step", -1, r"step below 0: \(-1, A, iou\) = 0.1"),
        ("step", 0.5, "column step has values that are not whole numbers"),
        ("n", 0, r"n below 1: \(0, A, iou\)"),
        ("value", math.nan, r"value not finite: \(0, A, iou\) = nan"),
        ("value", math.inf, r"value not finite: \(0, A, iou\) = inf"),
        ("value", 1.5, r"value outside 0..1: \(0, A, iou\) = 1.5"),
        ("value", "high", "wrong type.*'high'"),
        ("role", "learned", r"role 'learned', expected one of \['learn', 'natural', 'unseen'\]"),
        ("role", "unseen", "domain A has more than one role"),
        ("domain", None, "column domain has missing values"),
        ("step", 1, r"cell given twice: \(1, A, iou\) = 0.1, \(1, A, iou\) = 0.8"),
    ],
)
def test_a_bad_cell_is_named(column: str, value: object, message: str) -> None:
    frame = long_form().astype(object)
    frame.loc[0, column] = value
    with pytest.raises(DataError, match=message):
        validate_r_matrix(frame)


def test_columns_must_be_exact() -> None:
    with pytest.raises(DataError, match=r"columns missing \['role'\], unknown \['rolle'\]"):
        validate_r_matrix(long_form().rename(columns={"role": "rolle"}))


def test_a_workspace_without_natural_domains_has_an_empty_step_0(tmp_path: Path) -> None:
    write_r_matrix(tmp_path / "base", long_form().head(0), {"order": ""})
    empty = read_r_matrix(tmp_path / "base")
    assert empty.empty and list(empty.columns) == list(rmatrix.COLUMNS)
    assert summarize(empty, []) == {}
    pd.testing.assert_frame_equal(merge_steps([empty, long_form()]), validate_r_matrix(long_form()))


def test_all_problems_are_listed() -> None:
    frame = long_form()
    frame.loc[0, "n"], frame.loc[1, "value"] = 0, 7.0
    with pytest.raises(DataError, match=r"n below 1.*value outside"):
        validate_r_matrix(frame)


def test_merge_steps() -> None:
    frame = long_form()
    parts = [frame[frame["step"] == step] for step in (2, 0, 3, 1)]
    pd.testing.assert_frame_equal(merge_steps(parts), validate_r_matrix(frame))
    with pytest.raises(DataError, match=r"cell given twice: \(0, A, iou\) = 0.1"):
        merge_steps([*parts, frame.head(1)])
    with pytest.raises(DataError, match="no step to merge"):
        merge_steps([])


def test_files_are_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    frame, texts = long_form(), {"A": "sha256 ü", "B": "x"}
    write_r_matrix(tmp_path / "one", frame, texts)
    write_r_matrix(tmp_path / "two", frame.sample(frac=1, random_state=1), dict(reversed(texts.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    pd.testing.assert_frame_equal(read_r_matrix(tmp_path / "one"), validate_r_matrix(frame))
    assert read_metadata(tmp_path / "one") == texts
    write_r_matrix(tmp_path / "plain", frame)
    assert read_metadata(tmp_path / "plain") == {}
    assert len(pd.read_parquet(tmp_path / "one")) == len(frame), "any parquet reader can open it"


def test_an_invalid_frame_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_r_matrix(tmp_path / "x", pd.concat([long_form(), long_form()]))
    assert not (tmp_path / "x").exists()


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not parquet")
    for read in (read_r_matrix, read_metadata):
        with pytest.raises(DataError, match="x cannot be read as an R matrix"):
            read(tmp_path / "x")
        with pytest.raises(DataError, match="absent cannot be read"):
            read(tmp_path / "absent")


def test_pivot_puts_learnt_domains_in_order_first() -> None:
    matrix = pivot(long_form(), "iou", ("C", "A", "B"))
    assert list(matrix.columns) == ["C", "A", "B", "N", "U", "V"] and matrix.columns.name == "iou"
    assert matrix.at[2, "A"] == 0.7
    assert list(pivot(long_form(), "iou").columns) == ["A", "B", "C", "N", "U", "V"]
    assert domains_of(long_form(), "unseen") == ("U", "V")
    with pytest.raises(DataError, match=r"no cell of metric 'dice', it has \['iou'\]"):
        pivot(long_form(), "dice")


def test_pivot_leaves_unscored_cells_open() -> None:
    frame = long_form().query("not (step == 1 and domain == 'C')")
    assert math.isnan(pivot(frame, "iou").at[1, "C"])


# Summary --------------------------------------------------------------------------------------------------------------


def test_summary_has_every_number() -> None:
    accuracy = long_form(R.loc[1:], "selector_accuracy")
    summary = summarize(pd.concat([long_form(), long_form(1 - R, "mae"), accuracy]), ORDER)
    assert summary["iou/samcl_aa"] == pytest.approx(2.05 / 3)
    assert summary["iou/cosam_ff"] == pytest.approx(0.175) == -summary["iou/gem_bwt"]
    assert summary["iou/natural_retention"] == pytest.approx(-0.05) == -summary["mae/natural_retention"]
    assert summary["iou/unseen_gain"] == pytest.approx(0.15)
    assert (summary["iou/last/B"], summary["iou/zero_shot/B"]) == (0.6, 0.2)
    assert (summary["iou/last_natural"], summary["iou/last_unseen"]) == (0.85, pytest.approx(0.6))
    assert summary["selector_accuracy/last_mean"] == pytest.approx(2.05 / 3)
    assert summary["selector_accuracy/last/N"] == 0.85
    assert not {name for name in summary if name.startswith("mae/") and ("rwalk" in name or "mammoth" in name)}
    assert not {name for name in summary if "selector_accuracy/zero_shot" in name}
    assert all(math.isfinite(value) for value in summary.values())
    names = {name.split("/")[1] for name in summary if name.startswith("iou/")}
    assert names == {
        *(
            "zero_shot_mean",
            "samcl_aa",
            "samcl_fm",
            "samcl_ft",
            "cosam_last",
            "cosam_avg",
            "cosam_ff",
            "gem_bwt",
            "gem_fwt",
        ),
        *("mammoth_forgetting", "natural_retention", "unseen_gain"),
        *("last", "zero_shot", "last_natural", "last_unseen"),
    }


def test_summary_of_one_domain_leaves_out_what_does_not_exist() -> None:
    summary = summarize(long_form(R.loc[:1, ["A"]]), ["A"])
    assert summary == {
        "iou/zero_shot_mean": 0.1,
        "iou/samcl_aa": 0.8,
        "iou/samcl_fm": 0.0,
        "iou/cosam_last": 0.8,
        "iou/cosam_avg": 0.8,
        "iou/zero_shot/A": 0.1,
        "iou/last/A": 0.8,
    }


def test_summary_of_the_zero_shot_row_alone() -> None:
    summary = summarize(long_form(R.loc[:0, ["N", "U"]]), [])
    assert summary["iou/zero_shot/N"] == summary["iou/last_natural"] == 0.9
    assert summary["iou/natural_retention"] == 0


def test_summary_refuses_gaps_and_strangers() -> None:
    frame = long_form()
    with pytest.raises(DataError, match="no iou of domain N at step 3"):
        summarize(frame.query("not (step == 3 and domain == 'N')"), ORDER)
    with pytest.raises(DataError, match=r"domain C has role 'learn' and is not in the order \['A', 'B'\].*step 3"):
        summarize(frame, ["A", "B"])
    with pytest.raises(DataError, match=r"domain A is in the order .* more than once"):
        summarize(frame, [*ORDER, "A"])
    with pytest.raises(DataError, match="step 2 has a row, and fitted no selector"):
        summarize(frame, ORDER, (1, 3))
    for fits in ((1, 2), (3, 1), (0, 1, 3), (1, 3, 4)):
        with pytest.raises(DataError, match=r"the rows are .* expected ascending numbers that end with 3"):
            summarize(frame, ORDER, fits)


def test_summary_of_a_back_fill() -> None:
    order = ("A", "B", "C")
    frame = long_form(BACK_FILL.loc[[0, 1, 3], list(order)])
    summary = summarize(frame, order, (1, 3))
    assert summary["iou/samcl_fm"] == pytest.approx((0.8 - 0.75) / 3)
    assert summary["iou/samcl_ft"] == pytest.approx((0.3 + 0.4) / 2)
    assert summary["iou/last/C"] == 0.7
    with pytest.raises(DataError, match=r"no iou of domain . at step 2"):
        summarize(frame, order)


def test_the_order_of_arrival_matters_not_the_order_of_names() -> None:
    swapped = long_form().replace({"domain": {"A": "Z"}})
    assert summarize(swapped, ("Z", "B", "C"))["iou/samcl_fm"] == summarize(long_form(), ORDER)["iou/samcl_fm"]
