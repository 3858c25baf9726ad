"""The whole R matrix and everything computed from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samcl_core.config import Params
from samcl_core.errors import DataError
from samcl_core.evaluation.pictures import r_matrix_heatmap
from samcl_core.evaluation.rmatrix import merge_steps, read_r_matrix, summarize, write_r_matrix
from samcl_core.evaluation.tables import r_matrix_csv
from samcl_core.files import write_atomic, write_json
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import BASE, Places

__all__ = ["run"]


def run(root: Path, params: Params, domain: str = "", progress: Progress = silent) -> dict[str, Any]:
    """Write ``metrics/r_matrix.parquet``, ``metrics/r_matrix.csv``, ``metrics/summary.json`` and the heat-map."""
    places = Places(root)
    steps, fits = params.steps(), params.fits()
    frame = merge_steps([read_r_matrix(places.scores(step)) for step in (BASE, *steps)])
    if frame.empty:
        raise DataError("nothing was evaluated yet: no domain has arrived", hint="samcl arrive PATH")
    summary = summarize(frame, list(steps), fits)
    write_r_matrix(places.r_matrix, frame)
    write_atomic(places.r_matrix.with_suffix(".csv"), r_matrix_csv(frame).encode())
    write_json(places.summary, {"num_domains": len(steps), **summary})
    r_matrix_heatmap(frame, "iou", root / "pictures" / "r_matrix.png", order=list(steps), fits=fits)
    return summary
