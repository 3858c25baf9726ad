"""The Prefect task runner that the settings name: threads of this process, or the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from samcl_core.config import PipelineParams
from samcl_core.errors import SamclError, UsageError
from tasks.devices import num_gpus

__all__ = ["parallel_domains", "task_runner", "thread_settings", "use_thread_settings"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def parallel_domains(params: PipelineParams) -> int:
    """How many domains are taken in and learnt at a time on this machine."""
    return params.max_parallel or max(2, num_gpus(params.gpus))


def thread_settings() -> dict[str, str | None]:
    """How many threads numeric libraries of a step are told to use; part of what makes its bytes."""
    return {name: os.environ.get(name) for name in _THREAD_VARIABLES}


def use_thread_settings(settings: Mapping[str, str | None]) -> None:
    """Tell steps that this process starts the same. Dask sets these variables to 1, in its workers and beside them."""
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def task_runner(params: PipelineParams, num_tasks: int) -> Iterator[Any]:
    """A started task runner for ``num_tasks`` tasks that run side by side.

    Raises:
        UsageError: Dask is asked for and not installed.
        SamclError: no scheduler answers at the address.
    """
    width = max(1, min(parallel_domains(params), num_tasks))
    if params.runner == "threads":
        threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=width)
        with threads:
            yield threads
        return
    with _dask_runner(params.dask_address, width) as dask:
        try:
            _ = dask.client  # connects
        except OSError as exc:
            address = params.dask_address or "this machine"
            hint = "start it (`dask scheduler`, `dask worker`), or correct pipeline.dask_address in params.yaml"
            raise SamclError(f"no Dask scheduler at {address}: {exc}", hint=hint) from exc
        yield dask


def _dask_runner(address: str | None, width: int) -> Any:
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as exc:
        raise UsageError(
            "pipeline.runner is 'dask', and prefect-dask is not installed",
            hint='pip install "samcl[pipeline,dask]", or pipeline.runner: threads in params.yaml',
        ) from exc
    if address is not None:
        return DaskTaskRunner(address=address)
    # A step is a process of its own: one thread a worker, so that one domain is one process to look at and to kill.
    options = {"n_workers": width, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.ERROR}
    return DaskTaskRunner(cluster_kwargs=options)
