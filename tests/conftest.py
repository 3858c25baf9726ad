"""Tests never see the settings of the person who runs them; numbers recorded from the published code are compared once,
for the tests and for ``docs/parity.md``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

_FOREIGN = (
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_WORK_TREE",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_URI",
    "PREFECT_API_URL",
    "PREFECT_PROFILE",
    "SAMCL_PROGRESS_FILE",
)
_GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config: pytest.Config) -> None:
    config.option.importmode = "importlib"
    for name in _FOREIGN:
        os.environ.pop(name, None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share the cores; with as many threads each, small networks took five times as long.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


class Parity:
    """Asserts that numbers of ours equal recorded ones, and hands both on to ``tests/parity/report.py``."""

    def __init__(self, record: Callable[[str, Any], None]) -> None:
        self._record = record

    def __call__(
        self, quantity: str, network: str, ours: Any, recorded: Any, *, atol: float = 0.0, rtol: float = 0.0
    ) -> None:
        """``|ours - recorded| <= atol + rtol * |recorded|`` everywhere, shapes equal."""
        found, expected = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        assert found.shape == expected.shape, f"{quantity} ({network}): shape {found.shape}, recorded {expected.shape}"
        difference = np.abs(found - expected)
        limit = atol + rtol * np.abs(expected)
        # Share of the limit that is used; where nothing is allowed, any difference is one too many.
        used = np.divide(difference, limit, out=np.where(difference > 0, np.inf, 0.0), where=limit > 0)
        at = np.unravel_index(int(np.argmax(used if used.any() else np.abs(expected))), found.shape)
        self._keep(
            quantity,
            network,
            ours=float(found[at]),
            recorded=float(expected[at]),
            difference=float(difference.max()),
            atol=atol,
            rtol=rtol,
            count=found.size,
            used=float(used[at]),
            is_within=bool((used <= 1).all()),
        )
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=f"{quantity} ({network})")

    def masks(self, quantity: str, network: str, ours: Any, recorded: Any, *, at_most: float) -> None:
        """At most the share ``at_most`` of the pixels differs between two masks; ``recorded`` may be packed bits."""
        found, expected = np.asarray(ours, bool).ravel(), np.asarray(recorded)
        expected = expected.ravel() if expected.dtype == bool else np.unpackbits(expected).astype(bool)
        assert found.shape == expected.shape, f"{quantity} ({network}): {found.size} pixels, recorded {expected.size}"
        share = float((found != expected).mean())
        sums = {"ours": float(found.sum()), "recorded": float(expected.sum())}
        is_within = share <= at_most
        self._keep(quantity, network, **sums, difference=share, share=at_most, count=found.size, is_within=is_within)
        assert is_within, f"{quantity} ({network}): {share:.3%} of the pixels differ, at most {at_most:.3%} may"

    def _keep(self, quantity: str, network: str, **numbers: float) -> None:
        self._record("parity", {"quantity": quantity, "network": network, **numbers})


@pytest.fixture
def parity(record_property: Callable[[str, Any], None]) -> Parity:
    """``parity(quantity, network, ours, recorded, atol=, rtol=)``; ``parity.masks(...)`` for masks."""
    return Parity(record_property)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """``golden(name)``: the arrays of ``tests/golden/<name>.npz``. A missing file is an error, never a skip."""

    def read(name: str) -> dict[str, np.ndarray]:
        path = _GOLDEN / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"tests/golden/{path.name} is missing; next: git checkout -- tests/golden")
        with np.load(path) as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def load_file() -> Callable[[Path], ModuleType]:
    """``load_file(path)``: a helper of the tests as a module named like the file."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def recipe(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """``tests/recipe.py``: the weights and inputs that numbers were recorded for."""
    return load_file(_GOLDEN.parent / "recipe.py")
