from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

_TESTS = Path(__file__).parents[2]

Draw = Callable[..., Tensor]


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """``tests/recipe.py`` as a module."""
    spec = importlib.util.spec_from_file_location("recipe", _TESTS / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Selector numbers recorded from the published code."""
    with np.load(_TESTS / "golden" / "selector.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def draw() -> Draw:
    """``draw(k, n, seed=0, dim=16)``: n embeddings of class k, correlated, of unequal spread, with heavy tails."""

    def sample(k: int, num: int, seed: int = 0, dim: int = 16) -> Tensor:
        world = torch.Generator().manual_seed(dim)
        mix = torch.randn(dim, dim, generator=world) * torch.logspace(0, -1.5, dim)[:, None]
        means = torch.randn(12, dim, generator=world) @ mix * 4
        own = torch.Generator().manual_seed(1000 * seed + k + 1)
        noise = torch.randn(num, dim, generator=own) * (1 + 0.3 * torch.rand(num, 1, generator=own))
        return means[k] + (1 + 0.2 * k) * noise @ mix

    return sample
