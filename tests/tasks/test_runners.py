"""Which task runner the settings mean, without a flow."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from samcl_core.config import parse_params
from samcl_core.errors import ConfigError, SamclError, UsageError
from tasks.runners import parallel_domains, task_runner

pytestmark = pytest.mark.pipeline


def settings(**values: Any) -> Any:
    return parse_params({"pipeline": values}).pipeline


def test_how_many_domains_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert parallel_domains(settings()) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert parallel_domains(settings()) == 4
    assert parallel_domains(settings(gpus=3)) == 3
    assert parallel_domains(settings(max_parallel=1)) == 1


def test_threads_are_as_many_as_there_is_work() -> None:
    for max_parallel, num_tasks, expected in ((8, 3, 3), (2, 5, 2), (1, 0, 1)):
        with task_runner(settings(max_parallel=max_parallel), num_tasks) as runner:
            assert runner._max_workers == expected


def test_dask_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    monkeypatch.setitem(sys.modules, "prefect_dask.task_runners", None)
    with (
        pytest.raises(UsageError, match="prefect-dask is not installed") as caught,
        task_runner(settings(runner="dask"), 2),
    ):
        pass
    assert 'pip install "samcl[pipeline,dask]"' in caught.value.hint


def test_a_cluster_that_does_not_answer() -> None:
    import dask

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(SamclError, match=f"no Dask scheduler at {address}") as caught,
        task_runner(settings(runner="dask", dask_address=address), 2),
    ):
        pass
    assert "pipeline.dask_address" in caught.value.hint


@pytest.mark.parametrize("values", [{"runner": "ray"}, {"max_parallel": 0}, {"gpus": 0}, {"dask_address": ""}])
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"pipeline.{next(iter(values))}: .*found"):
        settings(**values)
