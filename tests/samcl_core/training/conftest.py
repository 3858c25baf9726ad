from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from samcl_core.adapters.base import Adapter
from samcl_core.backbones import Backbone, tiny_backbone
from samcl_core.domains.layout import Sample

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def case(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """``training_case.py``, which is also the program of the kill test."""
    return load_file(HERE / "training_case.py")


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def adapter(case: ModuleType, backbone: Backbone) -> Adapter:
    return case.small_adapter(backbone)


@pytest.fixture
def samples(case: ModuleType, tmp_path: Path) -> list[Sample]:
    return case.write_samples(tmp_path / "domain")
