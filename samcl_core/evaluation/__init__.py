"""How good masks and selections are: scores per image, the R matrix and its functions, tables and pictures.

``metrics`` needs torch and is imported when one of its names is first used; the rest starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samcl_core.evaluation.pictures import (
    SheetRow,
    comparison_sheet,
    r_matrix_heatmap,
)
from samcl_core.evaluation.rmatrix import (
    SCORES,
    SELECTOR_ACCURACY,
    cosam_avg,
    cosam_ff,
    cosam_last,
    gem_bwt,
    gem_fwt,
    mammoth_forgetting,
    merge_steps,
    natural_retention,
    pivot,
    read_metadata,
    read_r_matrix,
    rwalk_forgetting,
    samcl_aa,
    samcl_fm,
    samcl_ft,
    score_cells,
    summarize,
    unseen_gain,
    validate_r_matrix,
    write_r_matrix,
    zero_shot_mean,
)
from samcl_core.evaluation.selection import (
    confusion_matrix,
    expected_answer,
    selector_accuracies,
    selector_accuracy,
)
from samcl_core.evaluation.tables import r_matrix_csv, r_matrix_markdown, r_matrix_rows, r_matrix_text

if TYPE_CHECKING:
    from samcl_core.evaluation.metrics import binarize, boundary, boundary_iou, f1, iou, mae, mask_metrics

__all__ = [
    "SCORES",
    "SELECTOR_ACCURACY",
    "SheetRow",
    "binarize",
    "boundary",
    "boundary_iou",
    "comparison_sheet",
    "confusion_matrix",
    "cosam_avg",
    "cosam_ff",
    "cosam_last",
    "expected_answer",
    "f1",
    "gem_bwt",
    "gem_fwt",
    "iou",
    "mae",
    "mammoth_forgetting",
    "mask_metrics",
    "merge_steps",
    "natural_retention",
    "pivot",
    "r_matrix_csv",
    "r_matrix_heatmap",
    "r_matrix_markdown",
    "r_matrix_rows",
    "r_matrix_text",
    "read_metadata",
    "read_r_matrix",
    "rwalk_forgetting",
    "samcl_aa",
    "samcl_fm",
    "samcl_ft",
    "score_cells",
    "selector_accuracies",
    "selector_accuracy",
    "summarize",
    "unseen_gain",
    "validate_r_matrix",
    "write_r_matrix",
    "zero_shot_mean",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from samcl_core.evaluation import metrics

    return getattr(metrics, name)
