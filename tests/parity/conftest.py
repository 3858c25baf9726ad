"""The recipe's weights and inputs, and the golden numbers, for all parity tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from samcl_core.backbones import Prompts

_TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """``tests/recipe.py`` as a module."""
    spec = importlib.util.spec_from_file_location("recipe", _TESTS / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Arrays of one golden file by name."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(_TESTS / "golden" / f"{name}.npz") as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def synthetic_prompts(recipe: ModuleType) -> Prompts:
    """The recipe's three foreground points."""
    points, labels = recipe.synthetic_points()
    return Prompts(torch.tensor([points]), torch.tensor([labels]))


@pytest.fixture(scope="session")
def all_threads():
    """Full-size networks use every core whatever OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)
