"""Prefect tasks of a benchmark: one a unit of work, one for the report, one for the MLflow runs of its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed

from samcl_core.files import digest_json, sha256_file
from tasks.steps import told
from tasks.tracking import Record, find_or_log, metrics_at, open_tracker, prepare

if TYPE_CHECKING:
    from samcl_core.benchmarks import Cell, StreamSpec, Unit
    from samcl_core.benchmarks.summary import StrategyRow
    from samcl_core.progress import Progress

__all__ = ["do_unit", "log_benchmark", "log_results", "write_report"]


@task(name="unit", task_run_name="{title}", cache_policy=NO_CACHE)
def do_unit(title: str, call: Callable[[Progress], bool]) -> Any:
    """One unit; ``call`` returns whether there was anything to do. A finished one is Completed as ``Skipped``."""
    with told(title) as tell:
        if not call(tell.progress):
            tell("skipped")
            return Completed(name="Skipped", message="It was finished before.")
    return Completed(message="Done now.")


@task(name="report", cache_policy=NO_CACHE)
def write_report(root: Path, spec: StreamSpec, units: Sequence[Unit], command: str, device: str) -> list[Path]:
    """Tables, plots and pictures of the finished cells; returns their files."""
    from samcl_core.benchmarks.report import build_report

    with told("report"):
        return build_report(root, spec, units=units, command=command, device=device)


@task(name="log-to-mlflow", cache_policy=NO_CACHE)
def log_results(root: Path, spec: StreamSpec, units: Sequence[Unit], files: Sequence[Path]) -> list[str]:
    """An MLflow run a cell and one for the report; what was logged before is found again.

    Raises:
        RegistryUnavailable: MLflow cannot be reached; the files stay.
    """
    with told("log to MLflow") as tell:
        run_id = flow_run.get_id()
        flow_run_id = None if run_id is None else str(run_id)
        return log_benchmark(root, spec, units, files, flow_run_id=flow_run_id, progress=tell.progress)


def log_benchmark(
    root: Path,
    spec: StreamSpec,
    units: Sequence[Unit],
    files: Sequence[Path],
    *,
    flow_run_id: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[str]:
    """Write the runs that are missing.

    Args:
        root: output folder of the benchmark; also the place of the MLflow database when no server is named.
        spec: the stream.
        units: the plan whose cells are meant.
        files: of the report.
        flow_run_id: goes into the tags of new runs.
        progress: called after each run.

    Returns:
        The ids of the runs: the cells', then the report's.

    Raises:
        RegistryUnavailable: MLflow cannot be reached; runs that were written before stay.
    """
    from samcl_core.benchmarks.report import planned_cells
    from samcl_core.benchmarks.summary import strategy_rows

    prepare()
    cells = planned_cells(root, units)
    flow = {"prefect_flow_run_id": flow_run_id} if flow_run_id else {}
    records = [_cell_record(root, spec, cell, flow) for cell in cells]
    records.append(_report_record(root, spec, cells, strategy_rows(cells), files, flow))
    run_ids = []
    with open_tracker(root) as tracker:
        for number, record in enumerate(records, 1):
            run_ids.append(find_or_log(tracker, record))
            progress("runs", number, len(records))
    return run_ids


def _stream_params(root: Path, spec: StreamSpec) -> dict[str, str]:
    values = {
        "stream": spec.name,
        "backbone": spec.params_of(0).backbone.name,
        "size_px": spec.size_px,
        "num_train": spec.num_train,
        "num_test": spec.num_test,
    }
    return {name: str(value) for name, value in values.items()}


def _cell_record(root: Path, spec: StreamSpec, cell: Cell, flow: dict[str, str]) -> Record:
    from samcl_core.benchmarks import parse_method
    from samcl_core.benchmarks.summary import cell_numbers

    what = {"strategy": cell.strategy, "order_name": cell.order_name, "seed": str(cell.seed)}
    params = {**_stream_params(root, spec), **what, "order": ",".join(cell.order)}
    # The digest is over the cell's file, which holds the settings; so it was before they were logged.
    settings = cell.settings or spec.settings(parse_method(cell.strategy))
    numbers = {f"summary/{key}": value for key, value in cell_numbers(cell).items()}
    metrics = metrics_at(numbers, step=len(cell.order))
    for step in sorted({int(value) for value in cell.frame["step"]}):
        rows = cell.frame[cell.frame["step"] == step]
        columns = (rows["metric"], rows["domain"], rows["value"])
        cells = {f"{metric}/{domain}": float(value) for metric, domain, value in zip(*columns, strict=True)}
        metrics += metrics_at(cells, step=step)
    return Record(
        kind="benchmark-cell",
        digest=digest_json({"cell": cell.digest, "params": params}),
        name=f"{spec.name} {cell.strategy} {cell.order_name} seed {cell.seed}",
        tags={"stream": spec.name, **what, **flow},
        params={**params, **_flat(settings)},
        metrics=metrics,
        inputs=[],
        artifacts=[(cell.path, "cell")],
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """``adapter.rank``, ``train.lr`` and so on; the adapter's kind is ``adapter``."""
    flat = {f"{section}.{name}": str(value) for section, values in settings.items() for name, value in values.items()}
    return {"adapter" if name == "adapter.kind" else name: value for name, value in flat.items()}


def _report_record(
    root: Path,
    spec: StreamSpec,
    cells: Sequence[Cell],
    rows: Sequence[StrategyRow],
    files: Sequence[Path],
    flow: dict[str, str],
) -> Record:
    # MLflow takes no @ in the name of a metric.
    numbers = {
        f"{row.strategy.replace('@', ' ')}/{key}": stat.mean for row in rows for key, stat in row.numbers.items()
    }
    params = {
        **_stream_params(root, spec),
        "strategies": ",".join(row.strategy for row in rows),
        "orders": ",".join(dict.fromkeys(cell.order_name for cell in cells)),
        "seeds": ",".join(map(str, sorted({cell.seed for cell in cells}))),
    }
    # The page also names the machine and the command; what was measured is in the CSV files.
    tables = {path.name: sha256_file(path) for path in files if path.suffix == ".csv"}
    return Record(
        kind="benchmark",
        digest=digest_json({"tables": tables, "params": params}),
        name=f"{spec.name} benchmark",
        tags={"stream": spec.name, **flow},
        params=params,
        metrics=metrics_at(numbers, step=0),
        inputs=[],
        artifacts=[(path, "report") for path in files],
    )
