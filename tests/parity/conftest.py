"""Both full-size networks with recipe weights, opened once for all parity tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from samcl_core.backbones import Prompts


@pytest.fixture(scope="session")
def network_case(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """``network_case.py`` beside this file."""
    return load_file(Path(__file__).with_name("network_case.py"))


@pytest.fixture(scope="session")
def synthetic_prompts(recipe: ModuleType) -> Prompts:
    """The recipe's three foreground points."""
    points, labels = recipe.synthetic_points()
    return Prompts(torch.tensor([points]), torch.tensor([labels]))


@contextlib.contextmanager
def every_core() -> Iterator[None]:
    """Full-size networks use every core whatever OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def all_threads() -> Iterator[None]:
    """In the files of this folder alone: the tests after them share the cores with other workers."""
    with every_core():
        yield


@pytest.fixture(scope="session")
def sam1(network_case: ModuleType, recipe: ModuleType, golden: Any, synthetic_prompts: Prompts) -> Any:
    """SAM ViT-B after its prefix on the synthetic image."""
    with every_core():
        return network_case.open_case("sam1", recipe, golden("sam1_forward"), synthetic_prompts)


@pytest.fixture(scope="session")
def sam2(network_case: ModuleType, recipe: ModuleType, golden: Any, synthetic_prompts: Prompts) -> Any:
    """SAM 2.1 tiny after its prefix on the synthetic image."""
    with every_core():
        return network_case.open_case("sam2", recipe, golden("sam2_forward"), synthetic_prompts)


@pytest.fixture(params=[pytest.param("sam1", marks=pytest.mark.slow), "sam2"])
def case(request: pytest.FixtureRequest, parity: Any) -> Any:
    """Either network; its checks go to this test's ``parity``. SAM ViT-B is slow."""
    found = request.getfixturevalue(request.param)
    found.parity = parity
    return found
