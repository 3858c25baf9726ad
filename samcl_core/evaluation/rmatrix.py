"""The R matrix and everything that is computed from it. R[i, j] is domain j's score after step i; step 0 is zero-shot.

The stored form is long: one row a cell with ``step``, ``domain``, ``metric``, ``value``, ``n`` (images) and ``role``
(``learn``, ``natural`` or ``unseen``). ``pivot`` gives one metric as a matrix; the functions below it take that matrix
and ``order``, the learnt domains in the order of their arrival (``order[k - 1]`` was learnt at step k). In the formulas
i and j count from 1, and T is the number of learnt domains. Natural and unseen domains are outside all means over j.

A back-fill takes several domains in with one fit of the selector, in its last step. The steps before that one have no
row; ``fits`` names those that have, ascending (every step when ``None``). What the formulas call R[j, j], domain j just
learnt, is then R[l(j), j] with l(j) the first row from step j on, the end of the back-fill. R[j-1, j], the bank before
domain j, is R[p(j), j] with p(j) the last row before step j, the bank before the back-fill. Without back-fills l(j) = j
and p(j) = j - 1. "j < T" stands for the domains that were learnt before the last row, l(j) < T.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from samcl_core.errors import DataError
from samcl_core.files import write_atomic
from samcl_core.parquet import read_table

__all__ = [
    "COLUMNS",
    "LOWER_IS_BETTER",
    "ROLES",
    "SCORES",
    "SELECTOR_ACCURACY",
    "cosam_avg",
    "cosam_ff",
    "cosam_last",
    "domains_of",
    "gem_bwt",
    "gem_fwt",
    "learnt_in",
    "mammoth_forgetting",
    "merge_steps",
    "natural_retention",
    "pivot",
    "read_metadata",
    "read_r_matrix",
    "rwalk_forgetting",
    "samcl_aa",
    "samcl_fm",
    "samcl_ft",
    "score_cells",
    "summarize",
    "unseen_gain",
    "validate_r_matrix",
    "write_r_matrix",
    "zero_shot_mean",
]

COLUMNS = {"step": "int64", "domain": "str", "metric": "str", "value": "float64", "n": "int64", "role": "str"}
"""Columns of the long form and their types."""

ROLES = ("learn", "natural", "unseen")
SCORES = ("iou", "f1", "mae", "boundary_iou")
"""Metrics of masks. All lie in 0..1."""

LOWER_IS_BETTER = frozenset({"mae"})
SELECTOR_ACCURACY = "selector_accuracy"
"""Metric name of the share of images for which the selector answered as it should."""

_KEY = ["step", "domain", "metric"]
_HINT = "samcl stream runs every step that is missing; samcl step evaluate DOMAIN repeats one"


# The stored form ------------------------------------------------------------------------------------------------------


def score_cells(step: int, domain: str, role: str, scores: Mapping[str, Iterable[float]]) -> pd.DataFrame:
    """Cells of one domain after one step: the mean over its images of each metric.

    Args:
        step: 0 for zero-shot, k after the k-th learnt domain.
        domain: whose test images were scored.
        role: ``learn``, ``natural`` or ``unseen``.
        scores: metric to one value an image. Metrics may have different numbers of images.

    Returns:
        The long form, one row a metric. Sums are exact, so the order of the images does not matter.

    Raises:
        DataError: a metric has no image, or a value is not finite.
    """
    rows = []
    for metric, values in scores.items():
        numbers = [float(value) for value in values]
        if not numbers:
            raise DataError(f"step {step}, {domain}, {metric}: no image was scored", hint=_HINT)
        if not all(math.isfinite(number) for number in numbers):
            raise DataError(f"step {step}, {domain}, {metric}: a score is not finite")
        rows.append((step, domain, metric, math.fsum(numbers) / len(numbers), len(numbers), role))
    return validate_r_matrix(pd.DataFrame(rows, columns=list(COLUMNS)))


def validate_r_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """A new frame with exactly the columns of the long form, their types, sorted by step, domain and metric.

    A frame without cells is valid: it is what step 0 scores in a workspace without natural and unseen domains.

    Raises:
        DataError: columns are missing, surplus or of another type; a number is missing or out of range; a cell is there
            twice; a domain has two roles. All problems are listed.
    """
    missing, surplus = sorted(set(COLUMNS) - set(frame.columns)), sorted(set(map(str, frame.columns)) - set(COLUMNS))
    if missing or surplus:
        raise _invalid([f"columns missing {missing}, unknown {surplus}; expected {list(COLUMNS)}"])
    if incomplete := [name for name in COLUMNS if name != "value" and bool(frame[name].isna().any())]:
        raise _invalid([f"column {name} has missing values" for name in incomplete])
    try:
        typed = frame[list(COLUMNS)].astype(COLUMNS)
    except (TypeError, ValueError) as exc:
        raise _invalid([f"a value has the wrong type: {exc}"]) from exc
    for name in ("step", "n"):
        if not bool((typed[name] == frame[name]).all()):
            raise _invalid([f"column {name} has values that are not whole numbers"])
    if problems := _problems(typed):
        raise _invalid(problems)
    return typed.sort_values(_KEY, kind="stable", ignore_index=True)


def _invalid(problems: Sequence[str]) -> DataError:
    return DataError("R matrix: " + "; ".join(problems), hint=_HINT)


def _problems(frame: pd.DataFrame) -> list[str]:
    def cells(rows: pd.Series[bool], what: str) -> list[str]:
        found = frame[rows]
        shown = [f"({row.step}, {row.domain}, {row.metric}) = {row.value:g}" for row in found.head(5).itertuples()]
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return [f"{what}: {', '.join(shown)}{more}"] if len(found) else []

    bounded = frame["metric"].isin([*SCORES, SELECTOR_ACCURACY])
    finite = frame["value"].abs() < math.inf
    problems = cells(frame["step"] < 0, "step below 0")
    problems += cells(frame["n"] < 1, "n below 1")
    problems += cells(~finite, "value not finite")
    problems += cells(bounded & finite & ~frame["value"].between(0, 1), "value outside 0..1")
    problems += cells(frame.duplicated(_KEY, keep=False), "cell given twice")
    problems += [f"role {role!r}, expected one of {list(ROLES)}" for role in sorted({*frame["role"]} - {*ROLES})]
    roles = frame.groupby("domain")["role"].nunique()
    return problems + [f"domain {name} has more than one role" for name in sorted(roles[roles > 1].index)]


def merge_steps(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One long form from the files of the steps.

    Raises:
        DataError: no frame was given, a frame is not valid, or a cell is in more than one of them.
    """
    parts = [validate_r_matrix(frame) for frame in frames]
    if not parts:
        raise DataError("R matrix: there is no step to merge", hint=_HINT)
    return validate_r_matrix(pd.concat(parts, ignore_index=True))


def write_r_matrix(path: Path, frame: pd.DataFrame, metadata: Mapping[str, str] | None = None) -> None:
    """Write the validated long form as parquet, atomically; same cells and metadata, same bytes.

    Args:
        path: the file to write.
        frame: the long form, in any order.
        metadata: texts stored in the file's schema, for instance digests of the data that was scored.

    Raises:
        DataError: the frame is not valid; nothing is written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    fields = {"int64": pa.int64(), "str": pa.string(), "float64": pa.float64()}
    # The schema is our own: pandas would store its version and its index in it.
    texts = {key.encode(): value.encode() for key, value in sorted((metadata or {}).items())}
    schema = pa.schema([(name, fields[kind]) for name, kind in COLUMNS.items()], metadata=texts or None)
    valid = validate_r_matrix(frame)
    columns = {name: valid[name].tolist() for name in COLUMNS}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_r_matrix(path: Path) -> pd.DataFrame:
    """The validated long form of a parquet file.

    Raises:
        DataError: the file is missing, is not parquet, or holds something else.
    """
    import pyarrow as pa

    try:
        columns = read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as an R matrix: {exc}", hint=_HINT) from exc
    return validate_r_matrix(pd.DataFrame(columns))


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that ``write_r_matrix`` stored in the file's schema.

    Raises:
        DataError: the file is missing or is not parquet.
    """
    import pyarrow as pa

    try:
        stored = read_table(path).schema.metadata or {}
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as an R matrix: {exc}", hint=_HINT) from exc
    return {key.decode(): value.decode() for key, value in stored.items()}


# The matrix of one metric ---------------------------------------------------------------------------------------------


def domains_of(frame: pd.DataFrame, role: str) -> tuple[str, ...]:
    """Names of the domains with ``role`` in the long form, sorted."""
    return tuple(sorted(set(frame.loc[frame["role"] == role, "domain"])))


def pivot(frame: pd.DataFrame, metric: str, order: Sequence[str] = ()) -> pd.DataFrame:
    """One metric as a matrix: rows are steps, columns are domains, NaN where a cell was not scored.

    Args:
        frame: the long form.
        metric: for instance ``iou``. It becomes the name of the columns, so that errors can tell it.
        order: learnt domains in the order of arrival; they come first. The others follow by role, then by name.

    Raises:
        DataError: there is no cell of this metric.
    """
    cells = frame[frame["metric"] == metric]
    if cells.empty:
        raise DataError(f"R matrix: no cell of metric {metric!r}, it has {sorted(set(frame['metric']))}", hint=_HINT)
    matrix = cells.pivot(index="step", columns="domain", values="value").sort_index()
    rest = [name for role in ROLES for name in domains_of(cells, role) if name not in order]
    columns = [name for name in order if name in matrix.columns] + rest
    return matrix[columns].rename_axis(columns=metric)


def _cell(matrix: pd.DataFrame, step: int, domain: str) -> float:
    found = domain in matrix.columns and step in matrix.index
    value = float(matrix.at[step, domain]) if found else math.nan  # type: ignore[arg-type]
    if math.isnan(value):
        metric = matrix.columns.name or "value"
        raise DataError(f"R matrix: no {metric} of domain {domain} at step {step}", hint=_HINT)
    return value


def _mean(values: Iterable[float]) -> float:
    """The mean with an exact sum; NaN of nothing, which is what each caller documents."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _at(order: Sequence[str], step: int | None) -> int:
    last = len(order) if step is None else step
    if not order or last < 1:
        raise ValueError(f"step is {last} and order has {len(order)} domains, expected at least 1 of both")
    return last


def _row_of(j: int, fits: Sequence[int] | None) -> int:
    """l(j): the row in which the domain of step j was just learnt."""
    return j if fits is None else min((row for row in fits if row >= j), default=j)


def _row_before(j: int, fits: Sequence[int] | None) -> int:
    """p(j): the last row without the domain of step j; 0 where no bank was before it."""
    return j - 1 if fits is None else max((row for row in fits if row < j), default=0)


def learnt_in(step: int, order: Sequence[str], fits: Sequence[int] | None = None) -> tuple[str, ...]:
    """The domains that were just learnt in row ``step``: one, or those of a back-fill; none in row 0."""
    return tuple(order[_row_before(step, fits) : step]) if 0 < step <= len(order) else ()


def zero_shot_mean(matrix: pd.DataFrame, order: Sequence[str], step: int | None = None) -> float:
    """Mean score of the untouched backbone on the learnt domains, ``mean_{j<=i} R[0, j]``."""
    return _mean(_cell(matrix, 0, name) for name in order[: _at(order, step)])


def samcl_aa(matrix: pd.DataFrame, order: Sequence[str], step: int | None = None) -> float:
    """SAMCL's average accuracy after a step, ``AA_i = mean_{j<=i} R[i, j]``.

    Args:
        matrix: one metric, from ``pivot``.
        order: learnt domains in the order of arrival.
        step: i; the last one when ``None``. A row after the last domain (the published COCO row) averages all of them.

    Raises:
        DataError: a cell is missing; the message names step, domain and metric.
    """
    i = _at(order, step)
    return _mean(_cell(matrix, i, name) for name in order[:i])


def samcl_fm(
    matrix: pd.DataFrame, order: Sequence[str], step: int | None = None, *, fits: Sequence[int] | None = None
) -> float:
    """SAMCL's forgetting, ``FM_i = mean_{j<=i} (R[j, j] - R[i, j])``, the zero of what was just learnt included.

    The published code does not turn the sign for metrics where lower is better; neither does this.
    """
    i = _at(order, step)
    return _mean(_cell(matrix, _row_of(j, fits), name) - _cell(matrix, i, name) for j, name in enumerate(order[:i], 1))


def samcl_ft(
    matrix: pd.DataFrame, order: Sequence[str], step: int | None = None, *, fits: Sequence[int] | None = None
) -> float:
    """SAMCL's forward transfer, ``FT_i = mean_{j<i} R[j, j+1]``: absolute scores on the next, still unseen domain.

    Returns:
        NaN after the first row, where no domain was unseen (the published code prints 0 there).
    """
    return _mean(_cell(matrix, row, name) for row, name in _unseen_before(order[: _at(order, step)], fits))


def _unseen_before(order: Sequence[str], fits: Sequence[int] | None) -> list[tuple[int, str]]:
    """Each domain with the last row that did not have it, where there was a bank."""
    pairs = [(_row_before(j, fits), name) for j, name in enumerate(order, 1)]
    return [(row, name) for row, name in pairs if row > 0]


def cosam_last(matrix: pd.DataFrame, order: Sequence[str]) -> float:
    """CoSAM's Last, ``mean_j R[T, j]``."""
    return samcl_aa(matrix, order)


def cosam_avg(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """CoSAM's Avg, ``mean_i mean_{j<=i} R[i, j]``, over the rows that there are."""
    return _mean(samcl_aa(matrix, order, row) for row in _rows(order, fits))


def _rows(order: Sequence[str], fits: Sequence[int] | None) -> Sequence[int]:
    last = _at(order, None)
    return range(1, last + 1) if fits is None else fits


def _learnt_earlier(order: Sequence[str], fits: Sequence[int] | None) -> list[tuple[int, str]]:
    """The domains that were learnt before the last row, each with the row in which it was just learnt."""
    last = _at(order, None)
    pairs = [(_row_of(j, fits), name) for j, name in enumerate(order, 1)]
    return [(row, name) for row, name in pairs if row < last]


def cosam_ff(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """CoSAM's final forgetting, ``FF = mean_{j<T} (R[j, j] - R[T, j])``.

    Returns:
        NaN with one row, where nothing could be forgotten.
    """
    last = _at(order, None)
    return _mean(_cell(matrix, row, name) - _cell(matrix, last, name) for row, name in _learnt_earlier(order, fits))


def gem_bwt(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """Backward transfer of GEM (Lopez-Paz and Ranzato, 2017), ``mean_{j<T} (R[T, j] - R[j, j])``.

    It is minus ``cosam_ff``, and what Avalanche calls stream BWT after the last experience. NaN with one row.
    """
    return -cosam_ff(matrix, order, fits=fits)


def gem_fwt(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """Forward transfer of GEM, ``mean_{2<=j<=T} (R[j-1, j] - R[0, j])``: its untrained network is our zero-shot row.

    NaN with one row.
    """
    _at(order, None)
    return _mean(_cell(matrix, row, name) - _cell(matrix, 0, name) for row, name in _unseen_before(order, fits))


def rwalk_forgetting(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """Forgetting of RWalk (Chaudhry et al., 2018), ``mean_{j<T} (max_{1<=l<T} R[l, j] - R[T, j])``.

    The maximum is over all earlier rows, also those before j was learnt, and not over the last row: the result is
    negative when scores rise. For scores where higher is better. NaN with one row.
    """
    last = _at(order, None)
    earlier = [row for row in _rows(order, fits) if row < last]
    best = ((name, max(_cell(matrix, row, name) for row in earlier)) for _, name in _learnt_earlier(order, fits))
    return _mean(top - _cell(matrix, last, name) for name, top in best)


def mammoth_forgetting(matrix: pd.DataFrame, order: Sequence[str], *, fits: Sequence[int] | None = None) -> float:
    """Forgetting as Mammoth computes it, ``mean_{j<T} (max_{j<=l<=T} R[l, j] - R[T, j])``.

    The maximum includes the last row: never negative. For scores where higher is better. NaN with one row.
    """
    last = _at(order, None)
    rows = _rows(order, fits)
    best = (
        (name, max(_cell(matrix, row, name) for row in rows if row >= first))
        for first, name in _learnt_earlier(order, fits)
    )
    return _mean(top - _cell(matrix, last, name) for name, top in best)


def natural_retention(matrix: pd.DataFrame, natural: Sequence[str], step: int) -> float:
    """What the bank costs on natural images: ``mean_j (R[step, j] - R[0, j])`` over the natural domains.

    Returns:
        0 when nothing was lost, negative when the bank is worse than plain SAM; NaN without natural domains.
    """
    return _mean(_cell(matrix, step, name) - _cell(matrix, 0, name) for name in natural)


def unseen_gain(matrix: pd.DataFrame, unseen: Sequence[str], step: int) -> float:
    """What the bank gains where it was never trained: ``mean_j (R[step, j] - R[0, j])`` over the unseen domains.

    Returns:
        NaN without unseen domains.
    """
    return natural_retention(matrix, unseen, step)


# The summary ----------------------------------------------------------------------------------------------------------

_OF_LAST_ROW: dict[str, Callable[[pd.DataFrame, Sequence[str]], float]] = {
    "zero_shot_mean": zero_shot_mean,
    "samcl_aa": samcl_aa,
    "cosam_last": cosam_last,
}
_OF_ROWS: dict[str, Callable[..., float]] = {
    "samcl_fm": samcl_fm,
    "samcl_ft": samcl_ft,
    "cosam_avg": cosam_avg,
    "cosam_ff": cosam_ff,
    "gem_bwt": gem_bwt,
    "gem_fwt": gem_fwt,
}
# Not RWalk's: it also needs the scores of steps long before a domain was learnt, which the pipeline does not measure.
_OF_ROWS_HIGHER: dict[str, Callable[..., float]] = {"mammoth_forgetting": mammoth_forgetting}


def summarize(frame: pd.DataFrame, order: Sequence[str], fits: Sequence[int] | None = None) -> dict[str, float]:
    """Every number of the last step under a flat name such as ``iou/samcl_aa`` or ``iou/last/Kvasir``.

    For each metric: all functions above but ``rwalk_forgetting``; ``last/<domain>`` and ``zero_shot/<domain>``;
    ``last_natural`` and ``last_unseen`` (means). A number that does not exist is left out, and only then: forgetting
    and transfer with one domain, natural or unseen domains that the workspace does not have, and the maximum-based
    forgetting of metrics where lower is better. With no learnt domain at all only the scores of step 0 are there. The
    selector's accuracy has no forgetting and no zero-shot row: its mean is ``selector_accuracy/last_mean``.

    Args:
        frame: the long form.
        order: learnt domains in the order of arrival; the last step is its length.
        fits: the steps that have a row, ascending, the last step among them; every step when ``None``.

    Raises:
        DataError: a cell is missing, or there are steps or learnt domains that ``order`` or ``fits`` does not have.
    """
    frame = validate_r_matrix(frame)
    _check_order(frame, order, fits)
    summary: dict[str, float] = {}
    for metric in sorted(set(frame["metric"])):
        numbers = _summary_of(frame, pivot(frame, metric, order), order, fits)
        summary.update({f"{metric}/{name}": value for name, value in numbers.items() if not math.isnan(value)})
    return summary


def _check_order(frame: pd.DataFrame, order: Sequence[str], fits: Sequence[int] | None) -> None:
    problems = [
        f"domain {name} is in the order {list(order)} more than once" for name in {*order} if order.count(name) > 1
    ]
    strangers = sorted(set(domains_of(frame, "learn")) - set(order))
    problems += [f"domain {name} has role 'learn' and is not in the order {list(order)}" for name in strangers]
    if (last := max(frame["step"], default=0)) > len(order):
        problems.append(f"there is a step {last}, the order has {len(order)} domains")
    if fits is not None:
        if list(fits) != sorted({*fits, len(order)} & {*range(1, len(order) + 1)}):
            problems.append(f"the rows are {list(fits)}, expected ascending numbers that end with {len(order)}")
        surplus = sorted({*frame["step"]} - {0, *fits})
        problems += [f"step {step} has a row, and fitted no selector" for step in surplus if step <= len(order)]
    if problems:
        raise _invalid(problems)


def _summary_of(
    frame: pd.DataFrame, matrix: pd.DataFrame, order: Sequence[str], fits: Sequence[int] | None
) -> dict[str, float]:
    metric, last = str(matrix.columns.name), len(order)
    natural, unseen = domains_of(frame, "natural"), domains_of(frame, "unseen")
    numbers: dict[str, float] = {}
    if metric == SELECTOR_ACCURACY:
        numbers["last_mean"] = _mean(_cell(matrix, last, name) for name in order)
    elif order:
        of_rows = _OF_ROWS if metric in LOWER_IS_BETTER else _OF_ROWS | _OF_ROWS_HIGHER
        numbers = {name: function(matrix, order) for name, function in _OF_LAST_ROW.items()}
        numbers |= {name: function(matrix, order, fits=fits) for name, function in of_rows.items()}
    if metric != SELECTOR_ACCURACY:
        numbers["natural_retention"] = natural_retention(matrix, natural, last)
        numbers["unseen_gain"] = unseen_gain(matrix, unseen, last)
        numbers |= {f"zero_shot/{name}": _cell(matrix, 0, name) for name in (*order, *natural, *unseen)}
    numbers["last_natural"] = _mean(_cell(matrix, last, name) for name in natural)
    numbers["last_unseen"] = _mean(_cell(matrix, last, name) for name in unseen)
    return numbers | {f"last/{name}": _cell(matrix, last, name) for name in (*order, *natural, *unseen)}
