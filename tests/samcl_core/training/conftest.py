from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from samcl_core.adapters.base import Adapter
from samcl_core.backbones import Backbone, tiny_backbone
from samcl_core.domains.layout import Sample

HERE = Path(__file__).parent


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def case() -> ModuleType:
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
