"""``samcl benchmark``: strategies compared on one stream."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.board import Board
from flows.cli.output import emit_json, note, say, show_table
from flows.cli.running import JsonOption, KeepOption, run_flow

if TYPE_CHECKING:
    from flows.benchmark import BenchmarkResult, Request
    from samcl_core.benchmarks import StreamSpec
    from samcl_core.benchmarks.summary import StrategyRow

__all__ = ["benchmark"]


def benchmark(
    stream: Annotated[
        str, typer.Argument(help="A built-in stream (synthdomains, samcl, cosam) or the YAML file of your own.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the results.  [default: benchmarks/STREAM]")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds of pictures, points and training.")] = "0,1,2",
    orders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Orders of arrival; positions: all rotations.  [default: all of the stream]"
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option(metavar="NAME,...", help="What to compare: NAME, NAME@ADAPTER, samcl, cosam, adapters, all.")
    ] = "samcl",
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the stream's data.  [default: that of the YAML file, or .]"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one a core; one on a GPU]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    num_train: Annotated[int | None, typer.Option(min=2, help="Training images a domain.  [default: the stream's]")] = (
        None
    ),
    num_test: Annotated[int | None, typer.Option(min=1, help="Test images a domain.  [default: the stream's]")] = None,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare strategies on a stream: train, evaluate, tables and plots. Repeat it to continue."""
    from samcl_core.benchmarks import check_ready, load_stream, plan

    spec = load_stream(stream, data)
    sizes = {name: value for name, value in (("num_train", num_train), ("num_test", num_test)) if value is not None}
    spec = spec.model_copy(update=sizes)
    chosen: dict[str, tuple[Any, ...]] = {
        "strategies": _names(strategies),
        "orders": tuple(spec.orders) if orders is None else _names(orders),
        "seeds": _seeds(seeds),
    }
    root = (out or Path("benchmarks") / spec.name).resolve()
    check_ready(root, spec, plan(spec, **chosen))
    command = _command(stream, sizes, chosen)
    board = Board()
    result: BenchmarkResult = run_flow(
        root, board, lambda: _call(root, spec, _request(chosen, device, workers, command)), keep_server=keep_server
    )
    _answer(result, spec, chosen, board, as_json=as_json)


def _names(given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))


def _seeds(given: str) -> tuple[int, ...]:
    from samcl_core.errors import UsageError

    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--seeds is {given!r}, expected whole numbers with commas between them: 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _command(stream: str, sizes: dict[str, int], chosen: dict[str, tuple[Any, ...]]) -> str:
    """What repeats the benchmark; where and on which device is nobody's business but the reader's."""
    words = ["samcl", "benchmark", Path(stream).name if stream.endswith((".yaml", ".yml")) else stream]
    for name in ("seeds", "orders", "strategies"):
        words += [f"--{name}", ",".join(map(str, chosen[name]))]
    for name, value in sizes.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _request(chosen: dict[str, tuple[Any, ...]], device: str, workers: int | None, command: str) -> Request:
    from flows.benchmark import Request

    return Request(**chosen, device=device, workers=workers, command=command)


def _call(root: Path, spec: StreamSpec, request: Request) -> BenchmarkResult:
    from flows.benchmark import run_benchmark

    return run_benchmark(root, spec, request)


def _answer(
    result: BenchmarkResult, spec: StreamSpec, chosen: dict[str, tuple[Any, ...]], board: Board, *, as_json: bool
) -> None:
    from samcl_core.benchmarks import plan
    from samcl_core.benchmarks.report import planned_cells
    from samcl_core.benchmarks.summary import strategy_rows
    from tasks.tracking import run_url

    rows = strategy_rows(planned_cells(result.root, plan(spec, **chosen)))
    if as_json:
        emit_json(_values(result, spec, chosen, rows, board))
    else:
        _show(rows)
        say("scores: IoU x 100, mean ± deviation over seeds and orders")
        say(f"tables and plots: {result.files[0].parent}")
        if (masks := result.root / "masks").is_dir():
            say(f"masks beside the truth: {masks}")
    if result.warning:
        note(f"warning: {result.warning}")
        note("next: start or repair MLflow, then the same command: finished units are kept and their runs written")
    else:
        note(run_url(result.root, f"runs/{result.run_ids[-1]}"))


def _show(rows: Sequence[StrategyRow]) -> None:
    from samcl_core.benchmarks.summary import COST_COLUMNS, SCORE_COLUMNS, table_rows

    show_table(*table_rows(rows, SCORE_COLUMNS), "accuracy and forgetting", numbers=True)
    show_table(*table_rows(rows, COST_COLUMNS), "selector and cost", numbers=True)


def _values(
    result: BenchmarkResult,
    spec: StreamSpec,
    chosen: dict[str, tuple[Any, ...]],
    rows: Sequence[StrategyRow],
    board: Board,
) -> dict[str, Any]:
    return {
        "out": str(result.root),
        "stream": spec.name,
        **{name: list(values) for name, values in chosen.items()},
        "results": {row.strategy: {"title": row.title, "cells": row.num_cells, **_numbers(row)} for row in rows},
        "files": [str(path) for path in result.files],
        "mlflow_runs": result.run_ids,
        "warning": result.warning,
        "stages": board.values(),
    }


def _numbers(row: StrategyRow) -> dict[str, Any]:
    return {key: asdict(stat) for key, stat in row.numbers.items()}
