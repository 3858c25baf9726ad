"""The pyfunc model of a bank. MLflow stores this file with every version and runs it where the version is served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

try:
    from samcl_core.errors import SamclError
    from samcl_core.serving import BackboneReference, Service
except ImportError as exc:
    raise ImportError(f"{exc}; install samcl where this model is served, MLflow does not bring it along") from exc


class BankModel(PythonModel):
    """A verified bank on its backbone; requests are rows of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load bank and backbone, or say what is missing and how it comes here.

        ``SAMCL_DEVICE`` chooses the device, else the GPU where there is one.
        """
        settings = context.model_config
        backbone = BackboneReference(
            settings["backbone"], settings["backbone_sha256"], settings.get("backbone_file") or None
        )
        folder = context.artifacts.get("backbone")
        self.service = Service.load(
            Path(context.artifacts["bank"]),
            backbone,
            inside=None if folder is None else Path(folder) / str(backbone.file),
            upsampling=settings["upsampling"],
            device=os.environ.get("SAMCL_DEVICE") or "auto",
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of answers for each row of requests; a row that cannot be used refuses the request (HTTP 400)."""
        rows = [{str(name): value for name, value in row.items()} for row in model_input.to_dict(orient="records")]
        try:
            return pd.DataFrame(self.service.answer(rows, **(params or {})))
        except SamclError as exc:
            raise MlflowException(str(exc), error_code=INVALID_PARAMETER_VALUE) from exc
        except Exception as exc:
            # MLflow would answer anything else with 400: this is not the client's mistake.
            raise MlflowException(f"{type(exc).__name__}: {exc}", error_code=INTERNAL_ERROR) from exc


set_model(BankModel())
