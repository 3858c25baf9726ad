"""The cases of ``samcl bench`` for airspeed velocity, which keeps their results by commit and by machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from samcl_core.speed import find_cases, get_case, measure_case

DEVICE = os.environ.get("SAMCL_BENCH_DEVICE", "cpu")


class Cost:
    """Our way by the baseline, medians of arms in turns: less is better, and machines of different speed compare."""

    params = tuple(case.name for case in find_cases(["cpu" if DEVICE == "cpu" else "gpu"]))
    param_names = ("case",)
    unit = "of the baseline"
    timeout = 3600

    def track_cost(self, case: str) -> float:
        """The inverse of the ratio that ``samcl bench`` shows."""
        with tempfile.TemporaryDirectory(prefix="samcl-asv-") as folder:
            return 1 / measure_case(get_case(case), Path(folder), device=DEVICE).ratio
