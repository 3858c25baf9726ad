"""Write a bank as a pyfunc model folder: code and data side by side, nothing pickled, no path of this machine."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from samcl_core.config import BackboneParams, Params
from samcl_core.errors import CheckpointMismatch
from samcl_core.files import sha256_file

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from samcl_core.bank import Bank

__all__ = ["BANK_FOLDER", "REQUIREMENTS", "input_example", "requirements", "signature", "write_model"]

BANK_FOLDER = "artifacts/bank"
"""Where the bank is inside a model folder."""

REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "segment-anything",
    "sam2",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pydantic",
    "ruamel-yaml",
    "safetensors",
    "requests",
    "filelock",
)
"""What samcl_core needs to answer requests. samcl itself is in no package index and has to be installed beside it."""

_CODE = Path(__file__).with_name("bank_model.py")
_NANO = "sam_nano"


def write_model(folder: Path, snapshot: Path, bank: Bank, params: Params, *, root: Path, bundle: bool | None) -> None:
    """Write ``folder`` (new) as an MLflow model of the bank in ``snapshot``.

    Args:
        folder: the model folder.
        snapshot: a folder named ``bank`` with the files of ``bank``.
        bank: the loaded snapshot.
        params: which backbone, and how masks reach the images' sizes.
        root: the workspace, from which a relative ``backbone.checkpoint`` counts.
        bundle: copy the backbone's weights into the model. ``None``: for ``sam_nano`` only, which is small.

    Raises:
        CheckpointMissing: weights that shall travel along are not on this machine.
        CheckpointMismatch: they are not those the bank was made for.
    """
    pyfunc = _pyfunc()
    own = params.backbone.checkpoint
    settings = {
        "bank_digest": bank.digest,
        "backbone": bank.backbone,
        "backbone_sha256": bank.backbone_sha256,
        "backbone_file": Path(own).name if own else "",
        "upsampling": params.evaluate.upsampling or "bilinear",
    }
    with tempfile.TemporaryDirectory(prefix="samcl-model-") as scratch:
        artifacts = {"bank": str(snapshot)}
        weights = _copy_weights(Path(scratch) / "backbone", params.backbone, bank, root, bundle)
        if weights is not None:
            artifacts["backbone"] = str(weights.parent)
            settings["backbone_file"] = weights.name
        with _quiet():
            pyfunc.save_model(
                path=str(folder),
                python_model=str(_CODE),
                artifacts=artifacts,
                model_config=settings,
                signature=signature(),
                input_example=input_example(),
                pip_requirements=requirements(),
                metadata={"bank_digest": bank.digest, "domains": ",".join(bank.names)},
            )
    _forget_paths(folder)


def requirements() -> list[str]:
    """The serving dependencies as they are installed here, pinned; a build's local label (``+cu130``) is left out."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]


def signature() -> ModelSignature:
    """Columns and parameters of a request, columns of the answer.

    Lists are of any type for MLflow: it would refuse a whole number where it expects a fraction, and a message of ours
    names the row.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, TensorSpec

    anything = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "image", required=False),
        ColSpec(anything, "image_array", required=False),
        ColSpec(anything, "points", required=False),
        ColSpec(anything, "labels", required=False),
        ColSpec(anything, "box", required=False),
        ColSpec(DataType.string, "module", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(anything, "mask"),
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.string, "module"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(DataType.double, "novelty"),
        ColSpec(DataType.long, "height"),
        ColSpec(DataType.long, "width"),
        ColSpec(DataType.string, "bank"),
    ]
    options = [ParamSpec("mask_format", DataType.string, "png"), ParamSpec("batch_size", DataType.long, 8)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(options))


def input_example() -> tuple[Any, dict[str, Any]]:
    """A table of two rows, one with points and one with a box, and the parameters."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    stream = BytesIO()
    rows, columns = np.mgrid[:16, :24]
    disc = (rows - 8) ** 2 + (columns - 12) ** 2 < 25
    Image.fromarray(np.where(disc, 220, 60).astype(np.uint8)).save(stream, format="PNG")
    image = base64.b64encode(stream.getvalue()).decode("ascii")
    prompts = [
        {"image": image, "points": [[12, 8], [1, 1]], "labels": [1, 0], "module": "auto"},
        {"image": image, "box": [7, 3, 17, 13], "module": "plain"},
    ]
    table = pd.DataFrame(prompts).astype(object)
    return table.where(table.notna(), None), {"mask_format": "png", "batch_size": 8}


def _pyfunc() -> ModuleType:
    # Else a project file that happens to lie in the current folder becomes part of the model.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    with _quiet():
        import mlflow.pyfunc
    return mlflow.pyfunc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow 3.17 warns of its own type hints, of what pandas 3 thinks of its code, and of a venv without pip."""
    logger = logging.getLogger("mlflow.utils.environment")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _copy_weights(folder: Path, backbone: BackboneParams, bank: Bank, root: Path, bundle: bool | None) -> Path | None:
    """The backbone's file in ``folder``, its description beside it; ``None`` where none shall or needs to travel."""
    if bundle is False or (bundle is None and bank.backbone != _NANO):
        return None
    source = _weights_file(backbone, bank, root)
    if source is None:
        return None
    found = sha256_file(source)
    if found != bank.backbone_sha256:
        if bundle is None:  # an old bank beside newer built-in weights: it names what it needs
            return None
        raise CheckpointMismatch(
            f"{source} has sha256 {found}, the bank was made for {bank.backbone} with sha256 {bank.backbone_sha256}",
            hint="correct backbone in params.yaml, or register with --no-bundle-backbone",
        )
    folder.mkdir()
    shutil.copyfile(source, folder / source.name)
    description = source.with_suffix(".json")
    if bank.backbone == _NANO and description.is_file():
        shutil.copyfile(description, folder / description.name)
    return folder / source.name


def _weights_file(backbone: BackboneParams, bank: Bank, root: Path) -> Path | None:
    """Where the weights are on this machine; ``None`` for a backbone that is made from its name alone."""
    from samcl_core.backbones.checkpoints import KNOWN, locate
    from samcl_core.backbones.nano import NANO_WEIGHTS

    if backbone.checkpoint is not None and backbone.name == bank.backbone:
        return root / Path(backbone.checkpoint).expanduser()
    if bank.backbone in KNOWN:
        return locate(bank.backbone)
    return NANO_WEIGHTS if bank.backbone == _NANO and NANO_WEIGHTS.is_file() else None


def _forget_paths(folder: Path) -> None:
    """MLmodel keeps the folders it was made from; it is read by file names alone."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))
