"""What a flow run shows on its page: the R matrix, overlay pictures, the bank and its registered version."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from samcl_core.config import Params
from samcl_core.evaluation.rmatrix import merge_steps, read_r_matrix
from samcl_core.evaluation.tables import r_matrix_markdown
from samcl_core.stages.places import BASE, Places
from tasks.steps import artifact_key

__all__ = ["publish_step"]

_PICTURE_PX = 720
_MAX_PICTURES = 4


def publish_step(root: Path, params: Params, step: str, registered: Mapping[str, Any] | None) -> None:
    """Write the artifacts of a published step: ``r-matrix``, ``pictures-<step>``, ``bank-<step>``."""
    create_markdown_artifact(_r_matrix(root, params, step), "r-matrix", f"after {step}")
    pictures = _gallery(Places(root).pictures(step))
    if pictures:
        create_markdown_artifact(pictures, artifact_key("pictures", step), f"overlays after {step}")
    if registered is not None:
        create_markdown_artifact(_bank(step, registered), artifact_key("bank", step), f"the bank after {step}")
        _link(root, registered)


def _r_matrix(root: Path, params: Params, step: str) -> str:
    order = params.steps()[: params.steps().index(step) + 1]
    fits = [row for row in params.fits() if row <= len(order)]
    frame = merge_steps([read_r_matrix(Places(root).scores(name)) for name in (BASE, *order)])
    tables = [f"## {metric}\n\n{r_matrix_markdown(frame, metric, order, fits=fits)}" for metric in _metrics(frame)]
    head = f"# R matrix after {step}\n\nRows are steps (0 is the plain backbone), columns are test sets."
    return "\n\n".join([head, *tables])


def _metrics(frame: Any) -> list[str]:
    there = set(frame["metric"])
    return [name for name in ("iou", "f1", "boundary_iou", "mae") if name in there] or sorted(there)[:1]


def _gallery(folder: Path) -> str:
    """Pictures inside the text: the page needs no file server. The full-size files stay in the workspace."""
    if not folder.is_dir():
        return ""
    files = sorted(folder.glob("*.png"))[:_MAX_PICTURES]
    parts = [f"### {file.stem}\n\n![{file.stem}]({_data_uri(file)})\n\n`{file}`" for file in files]
    return "\n\n".join(parts)


def _data_uri(file: Path) -> str:
    from PIL import Image

    with Image.open(file) as picture:
        small = picture.convert("RGB")
        small.thumbnail((_PICTURE_PX, 4 * _PICTURE_PX))
        data = io.BytesIO()
        small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _bank(step: str, registered: Mapping[str, Any]) -> str:
    rows = {
        "step": step,
        "bank digest": registered["digest"],
        "registered as": f"{registered['name']} version {registered['version']}",
        "MLflow run": registered["run_id"],
        "new version": "yes" if registered["created"] else "no, this very bank was registered before",
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | `{value}` |" for name, value in rows.items())


def _link(root: Path, registered: Mapping[str, Any]) -> None:
    from tasks.tracking import tracking_uri

    address = tracking_uri(root)
    if address.startswith(("http://", "https://")):
        page = f"{address.rstrip('/')}/#/models/{registered['name']}/versions/{registered['version']}"
        create_link_artifact(page, f"{registered['name']} version {registered['version']}", "mlflow-version")
