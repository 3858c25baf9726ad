"""``samcl bench``: how fast things are, as ratios within one run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import StepProgress, emit_json, say, show_table
from flows.cli.running import JsonOption

__all__ = ["bench"]


def bench(
    cases: Annotated[list[str] | None, typer.Argument(help="Cases to measure. None: all of them.")] = None,
    size: Annotated[int | None, typer.Option(min=2, help="How much work, in the case's unit.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of each arm that count.")] = 5,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where the data is made; emptied at the end. Default: the system's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure cases: a baseline and our way in turns on the same data; the ratio of the medians."""
    from samcl_core.files import write_atomic
    from samcl_core.speed import case_names, get_case, machine_facts, measure_case

    found = []
    chosen = [get_case(name) for name in cases or case_names()]
    for case in chosen:
        with (
            tempfile.TemporaryDirectory(prefix="samcl-bench-", dir=folder) as place,
            StepProgress(case.name) as progress,
        ):
            found.append(measure_case(case, Path(place), size=size, repeats=repeats, progress=progress))
    measured = [measurement.as_json() for measurement in found]
    values = {"machine": machine_facts(), "cases": measured}
    if out is not None:
        write_atomic(out, (json.dumps(values, indent=1) + "\n").encode())
    if as_json:
        emit_json(values)
        return
    rows = [
        [one["case"], f"{one['baseline_median_s']:.3f}", f"{one['ours_median_s']:.3f}", f"{one['ratio']:.2f}"]
        for one in measured
    ]
    show_table(["case", "baseline, s", "ours, s", "ratio"], rows, numbers=True)
    for one in found:
        say(f"{one.case}: {one.title}; baseline: {one.baseline}")
