"""The workspace of ``filled_workspace`` with invented scores that let every gate pass, or fail as a test wants it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pandas as pd

from samcl_core.config import Params
from samcl_core.evaluation.rmatrix import write_r_matrix
from samcl_core.stages.places import Places

BETTER = {"Polyps": 0.80, "Shadows": 0.90, "Scenes": 0.70}
"""IoU of the second bank with which every gate passes."""


def fill(root: Path) -> Params:
    """Banks ``Polyps`` (step 1) and ``Shadows`` (step 2); both may become champion."""
    params: Params = _filled().fill(root)
    score(root, "base", {"Scenes": 0.70})
    score(root, "Polyps", {"Polyps": 0.80, "Scenes": 0.70}, zero_shot={"Polyps": 0.30})
    score(root, "Shadows", BETTER, zero_shot={"Shadows": 0.20})
    return params


def score(
    root: Path,
    step: str,
    iou: Mapping[str, float],
    *,
    zero_shot: Mapping[str, float] | None = None,
    selector: float = 1.0,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Write a step file as the stage does: IoU of the step's bank, the new domain's row 0, the selector's accuracy."""
    number = ("base", "Polyps", "Shadows").index(step)
    cells = [(number, domain, "iou", value) for domain, value in iou.items()]
    cells += [(0, domain, "iou", value) for domain, value in (zero_shot or {}).items()]
    cells += [(number, domain, "selector_accuracy", selector) for domain in iou if number]
    rows = [
        {
            "step": row,
            "domain": domain,
            "metric": metric,
            "value": value,
            "n": 4,
            "role": "natural" if domain == "Scenes" else "learn",
        }
        for row, domain, metric, value in cells
    ]
    places = Places(root)
    bank = json.loads((places.bank(step) / "bank.json").read_text())["digest"]
    known = {**_filled().DIGESTS, **(digests or {})}
    data = {f"test_digest/{domain}": known[domain] for domain in iou}
    write_r_matrix(places.scores(step), pd.DataFrame(rows), {"bank": bank, **data})


def _filled() -> ModuleType:
    path = Path(__file__).with_name("filled_workspace.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
