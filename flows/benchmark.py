"""The flow of a benchmark: every unit of its plan as a task, side by side where they can be, then the tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from samcl_core.errors import SamclError
from tasks.benchmarks import do_unit, log_results, write_report
from tasks.limits import held
from tasks.schedule import Done, Outcome, run_graph
from tasks.steps import artifact_key, told
from tasks.tracking import RegistryUnavailable
from tasks.workers import Workers, num_cores, worker_pool

if TYPE_CHECKING:
    from samcl_core.benchmarks import StreamSpec, Unit
    from samcl_core.progress import Progress

__all__ = ["BenchmarkFailed", "BenchmarkResult", "Request", "run_benchmark"]

_SPARE_THREADS = 8


@dataclass(frozen=True)
class Request:
    """What to measure, and with what.

    Attributes:
        strategies: names of methods and groups, see ``samcl_core.benchmarks.methods``.
        seeds: of pictures, points, modules and selectors.
        orders: names of the stream's orders, or ``positions``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: processes; ``None`` is one a core without a GPU, and one with.
        command: what repeats this, for the head of the table.
    """

    strategies: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    orders: tuple[str, ...] = ("default", "reverse")
    device: str = "auto"
    workers: int | None = None
    command: str = ""


@dataclass(frozen=True)
class BenchmarkResult:
    """What came of a benchmark.

    Attributes:
        root: its folder.
        files: of the report.
        run_ids: MLflow runs, the report's last; empty when MLflow could not be reached.
        warning: what did not work although the results are there; empty when all did.
    """

    root: Path
    files: list[Path]
    run_ids: list[str]
    warning: str = ""


class BenchmarkFailed(SamclError):
    """Units failed; everything that does not need them is finished and stays.

    Attributes:
        failed: id of each failed unit to its error.
        blocked: ids of units that need one of them.
    """

    def __init__(self, units: Sequence[Unit], outcome: Outcome) -> None:
        self.failed, self.blocked = dict(outcome.failed), tuple(outcome.blocked)
        titles = {unit.id: unit.title for unit in units}
        first, cause = next(iter(outcome.failed.items()))
        is_ours = isinstance(cause, SamclError)
        reason = cause.message if isinstance(cause, SamclError) else f"{type(cause).__name__}: {cause}"
        others = [titles[name] for name in outcome.failed if name != first]
        lines = [f"{titles[first]}: {reason}"]
        lines += [f"  failed as well: {', '.join(others)}"] if others else []
        lines += [f"  not begun because of it: {len(outcome.blocked)} unit(s)"] if outcome.blocked else []
        lines += [f"  finished and kept: {len(outcome.finished)} of {len(units)} units; no table was written"]
        if is_ours:
            self.exit_code = cause.exit_code  # type: ignore[attr-defined]
        hint = (cause.hint if isinstance(cause, SamclError) else "") or "the same command continues"
        super().__init__("\n".join(lines), hint=hint)


def run_benchmark(root: Path, spec: StreamSpec, request: Request) -> BenchmarkResult:
    """Measure, report and log; run again, it continues and does nothing where all is finished.

    Args:
        root: output folder.
        spec: the stream.
        request: strategies, seeds, orders, device.

    Raises:
        UsageError: something asked for is not known, or the folder holds another benchmark; nothing was begun.
        DataError: data are missing; nothing was begun.
        BenchmarkFailed: a unit failed; the others are finished.
    """
    from samcl_core.backbones import load_backbone, resolve_device
    from samcl_core.benchmarks import check_ready, open_benchmark, plan

    units = plan(spec, strategies=request.strategies, seeds=request.seeds, orders=request.orders)
    device = str(resolve_device(request.device))
    workers = request.workers or (num_cores() if device == "cpu" else 1)
    request = replace(request, device=device, workers=workers)
    check_ready(root, spec, units)
    open_benchmark(root, spec, load_backbone(spec.params_of(request.seeds[0]).backbone).sha256, units)
    runner: Any = ThreadPoolTaskRunner(max_workers=workers + _SPARE_THREADS)
    result: BenchmarkResult = _benchmark.with_options(task_runner=runner)(root, spec, request, units)
    return result


@flow(name="benchmark", flow_run_name="benchmark {spec.name}", validate_parameters=False)
def _benchmark(root: Path, spec: StreamSpec, request: Request, units: Sequence[Unit]) -> BenchmarkResult:
    outcome = _run_units(root, spec, request, units)
    if outcome.failed:
        raise BenchmarkFailed(units, outcome)
    files = write_report(root, spec, units, request.command, request.device)
    _show_on_page(root, spec, units, files)
    try:
        return BenchmarkResult(root, files, log_results(root, spec, units, files))
    except RegistryUnavailable as exc:
        return BenchmarkResult(root, files, [], f"not logged to MLflow: {exc.message}")


# Units ----------------------------------------------------------------------------------------------------------------


def _run_units(root: Path, spec: StreamSpec, request: Request, units: Sequence[Unit]) -> Outcome:
    from samcl_core.benchmarks import to_do

    width, is_cpu = request.workers or 1, request.device == "cpu"
    todo = to_do(root, units)
    is_free = is_cpu or not todo
    with nullcontext() if is_free else held("gpu"), worker_pool(width, 1 if is_cpu else None) as workers:
        work = partial(_work, workers, root, spec, request.device, todo)
        with _Total(spec.name, len(units)) as total:
            return run_graph(units, _Tasks(work).start, width, total.show)


def _work(
    workers: Workers,
    root: Path,
    spec: StreamSpec,
    device: str,
    todo: frozenset[str],
    unit: Unit,
    progress: Progress,
) -> bool:
    """Do a unit in a worker; False when it is finished already, or nothing that is left needs it."""
    from samcl_core.benchmarks import run_unit

    if unit.id not in todo:
        return False
    workers.run(run_unit, root, spec, unit, device, progress=progress)
    return True


class _Tasks:
    """Submits units as Prefect tasks, each waiting (for the page's graph) for those it needs."""

    def __init__(self, work: Callable[[Unit, Progress], bool]) -> None:
        self._work = work
        self._futures: dict[str, PrefectFuture[Any]] = {}

    def start(self, unit: Unit, done: Done) -> None:
        raised: list[BaseException] = []

        def call(progress: Progress) -> bool:
            try:
                return self._work(unit, progress)
            except BaseException as exc:
                raised.append(exc)
                raise

        needed = [self._futures[name] for name in unit.needs]
        task: Any = do_unit.with_options(tags=_tags(unit))
        future = task.submit(unit.title, call, wait_for=needed)
        self._futures[unit.id] = future
        future.add_done_callback(lambda ended: done(_error_of(ended, raised)))


def _tags(unit: Unit) -> list[str]:
    return [f"seed-{unit.seed}", unit.kind, *filter(None, (unit.method, unit.domain, unit.order_name))]


def _error_of(future: Any, raised: Sequence[BaseException]) -> BaseException | None:
    try:
        state = future.wrapped_future.result()
    except BaseException as exc:  # cancelled before it began
        return exc
    if state.is_completed():
        return None
    return raised[0] if raised else SamclError(f"Prefect ended it as {state.name}: {state.message}")


class _Total:
    """How many units are finished: a bar, and a progress artifact on the page. The artifact may fail."""

    def __init__(self, name: str, num_units: int) -> None:
        self._stage, self._num_units = f"benchmark {name}", num_units
        self._told = told(self._stage)
        self._artifact: Any = None

    def __enter__(self) -> _Total:
        self._tell = self._told.__enter__()
        with contextlib.suppress(Exception):
            self._artifact = create_progress_artifact(0.0, artifact_key(self._stage), f"{self._num_units} units")
        return self

    def __exit__(self, *error: Any) -> None:
        self._told.__exit__(*error)

    def show(self, outcome: Outcome) -> None:
        done, failed = len(outcome.finished), len(outcome.failed)
        if failed:
            self._tell("failed")
        self._tell.progress("units", done, self._num_units)
        text = f"{done} of {self._num_units} units" + (f", {failed} failed" if failed else "")
        with contextlib.suppress(Exception):
            update_progress_artifact(self._artifact, 100.0 * done / self._num_units, text)


# The page -------------------------------------------------------------------------------------------------------------


def _show_on_page(root: Path, spec: StreamSpec, units: Sequence[Unit], files: Sequence[Path]) -> None:
    """The tables as artifacts of the flow run."""
    from samcl_core.benchmarks.report import planned_cells
    from samcl_core.benchmarks.summary import COST_COLUMNS, SCORE_COLUMNS, strategy_rows, table_rows

    rows = strategy_rows(planned_cells(root, units))
    header, body = table_rows(rows, (*SCORE_COLUMNS, *COST_COLUMNS))
    key = artifact_key("benchmark", spec.name)
    create_table_artifact([dict(zip(header, row, strict=True)) for row in body], f"{key}-table", spec.title)
    for path in files:
        if path.suffix == ".md":
            create_markdown_artifact(path.read_text(encoding="utf-8"), artifact_key(key, path.stem), spec.title)
