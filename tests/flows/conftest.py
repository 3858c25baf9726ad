"""What tests of flows and commands share: one Prefect server, drawn domains, the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.server import Server, prefect_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared server; workers of pytest-xdist share it too, the last one stops it."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    # A flow's heartbeat thread costs a second at its end.
    with prefect_server(root) as shared, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield shared


@pytest.fixture
def samcl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; returns exit code, stdout, stderr."""
    from flows.cli.main import run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run([str(argument) for argument in arguments])
        return (int(caught.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny domains as they would arrive: ``polyp``, ``shadow``, ``crack`` and ``natural``, 4 + 2 images of 64 px."""
    from samcl_core.domains.synthetic import write_domain

    root = tmp_path_factory.mktemp("drawn")
    for number, scene in enumerate(("polyp", "shadow", "crack", "natural")):
        write_domain(root / scene, scene, 4, 2, 64, number)
    return root
