"""Tests never see the settings of the person who runs them."""

from __future__ import annotations

import os

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


def pytest_configure(config: pytest.Config) -> None:
    config.option.importmode = "importlib"
    for name in _FOREIGN:
        os.environ.pop(name, None)
