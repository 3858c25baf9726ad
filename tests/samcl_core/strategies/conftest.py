from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from samcl_core.strategies import Context, Task

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toy(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """``strategy_case.py``."""
    return load_file(HERE / "strategy_case.py")


@pytest.fixture(scope="session")
def tasks(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Task]:
    """Two domains that contradict each other."""
    return toy.toy_tasks(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def context(toy: ModuleType) -> Context:
    """Backbone, prefixes, adapter, options; nothing of it changes."""
    return toy.toy_context()
