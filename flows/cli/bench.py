"""``samcl bench``: how fast things are, as ratios within one run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.output import StepProgress, emit_json, say, show_table
from flows.cli.running import JsonOption

if TYPE_CHECKING:
    from samcl_core.speed import Measurement

__all__ = ["bench"]

_HEADER = ("case", "baseline", "ours", "ratio", "wanted")


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(help="Cases, first words of their names, or the groups cpu, gpu, all. None: cpu."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="How much work, in each case's unit.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Turns that count. Default: each case's own.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own choice.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where the data is made; emptied at the end. Default: the system's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file, too, after each case.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    list_cases: Annotated[bool, typer.Option("--list", help="Say which cases there are, and measure nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure cases: a baseline and our way in turns on the same data; the ratio of the medians.

    The baseline of most cases does what the published code does. Above 1, our way is faster, or smaller.
    """
    import torch

    from samcl_core.backbones import resolve_device
    from samcl_core.files import write_atomic
    from samcl_core.speed import find_cases, machine_facts, measure_case

    chosen = find_cases(cases or (["all"] if list_cases else ["cpu"]))
    if list_cases:
        _show_cases(chosen, as_json)
        return
    if threads is not None:
        torch.set_num_threads(threads)
    place_of_work = str(resolve_device(device))
    found: list[Measurement] = []
    for case in chosen:
        with (
            tempfile.TemporaryDirectory(prefix="samcl-bench-", dir=folder) as place,
            StepProgress(case.name) as progress,
        ):
            found.append(
                measure_case(case, Path(place), size=size, repeats=repeats, device=place_of_work, progress=progress)
            )
        values = {"machine": machine_facts(place_of_work), "cases": [one.as_json() for one in found]}
        if out is not None:
            write_atomic(out, (json.dumps(values, indent=1) + "\n").encode())
    if as_json:
        emit_json(values)
    elif markdown:
        _show_markdown(found)
    else:
        show_table(_HEADER, [_row(one) for one in found], numbers=True)
        for one in found:
            say(f"{one.case}: {one.title}; baseline: {one.baseline}")


def _row(one: Measurement) -> list[str]:
    values = one.as_json()
    wanted = "" if one.target is None else f">= {one.target:.3g}"
    both = [_amount(values[name], one.unit) for name in ("baseline_median", "ours_median")]
    return [one.case, *both, f"{one.ratio:.2f}", wanted]


def _amount(value: float, unit: str) -> str:
    return f"{value / 2**20:,.1f} MiB" if unit == "bytes" else f"{value:.4g} s"


def _show_markdown(found: list[Measurement]) -> None:
    say("| " + " | ".join(_HEADER) + " |")
    say("| --- |" + " ---: |" * (len(_HEADER) - 1))
    for one in found:
        say("| " + " | ".join(cell.replace(">= ", "≥ ") for cell in _row(one)) + " |")


def _show_cases(chosen: list[Any], as_json: bool) -> None:
    names = ("name", "title", "baseline", "unit", "groups", "targets", "repeats")
    if as_json:
        emit_json([{name: getattr(case, name) for name in names} for case in chosen])
        return
    for case in chosen:
        say(f"{case.name}  [{', '.join(case.groups)}]")
        say(f"    {case.title}")
        say(f"    baseline: {case.baseline}")
