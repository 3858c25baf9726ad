"""``samcl step``, ``evaluate`` and ``register``: single steps, without a flow around them."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.board import Board
from flows.cli.output import Settings, StepProgress, brief, emit_json, note, say, show_r_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from samcl_core.config import Params
    from samcl_core.progress import Progress

__all__ = ["answer_with_r_matrix", "evaluate", "register", "repro_stage", "step"]

_WHERE = {
    "ingest": "domains",
    "points": "domains",
    "embed": "domains",
    "train": "modules",
    "bank": "stream",
    "evaluate": "stream",
}
"""Stage to the section of params.yaml that must name its domain; the other stages have none."""


def step(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="ingest, points, embed, train, base, bank, evaluate or report.")],
    domain: Annotated[str | None, typer.Argument(help="The domain; base and report have none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run one step of the pipeline here and now. This is the command inside dvc.yaml: DVC calls it, people may."""
    from importlib import import_module

    from samcl_core.config import load_params
    from samcl_core.progress import silent
    from tasks.code import check_code

    settings: Settings = context.obj
    _check_stage(stage)
    root = settings.root()
    params = load_params(root / "params.yaml")
    name = _checked_domain(stage, domain, params)
    check_code(root, stage)
    is_alone = _check_alone(stage)
    started = time.monotonic()
    with StepProgress(f"{stage} {name}".strip()) as progress:
        summary = import_module(f"samcl_core.stages.{stage}").run(root, params, name, progress if is_alone else silent)
    if not is_alone:
        return
    seconds = time.monotonic() - started
    if as_json:
        emit_json({"stage": stage, "domain": name or None, "seconds": round(seconds, 3), "summary": summary})
    else:
        rest = {key: value for key, value in summary.items() if key != "domain"}
        say(f"{stage} {name}".strip() + f": {brief(rest)} ({seconds:.1f} s)")


def _check_stage(stage: str) -> None:
    from samcl_core.errors import UsageError
    from samcl_core.stages import STAGES

    if stage not in STAGES:
        raise UsageError(f"stage is {stage!r}, expected one of {list(STAGES)}", hint="samcl step --help")


def _check_alone(stage: str) -> bool:
    """Whether nobody else reports this step: of several processes of ``torchrun`` the first one does."""
    from samcl_core.errors import UsageError

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    if stage != "train":
        raise UsageError(f"step {stage} runs in one process, found torchrun", hint=f"samcl step {stage}")
    return os.environ.get("RANK", "0") == "0"


def _checked_domain(stage: str, domain: str | None, params: Params) -> str:
    from samcl_core.errors import UsageError

    section = _WHERE.get(stage)
    if section is None:
        if domain is not None:
            raise UsageError(f"step {stage} has no domain, found {domain!r}", hint=f"samcl step {stage}")
        return ""
    known = list(getattr(params, section))
    if domain is None:
        raise UsageError(f"step {stage} needs a domain, one of {known}", hint=f"samcl step {stage} DOMAIN")
    if domain not in known:
        raise UsageError(
            f"domain {domain!r} is not under {section} in params.yaml, expected one of {known}",
            hint="samcl arrive FOLDER --domain " + domain,
        )
    return domain


def evaluate(
    context: typer.Context,
    step: Annotated[str | None, typer.Argument(help="base or a domain of the stream. Default: every step.")] = None,
    metric: Annotated[str, typer.Option(help="Metric of the table: iou, f1, mae, boundary_iou.")] = "iou",
    log: Annotated[bool, typer.Option("--log/--no-log", help="Write MLflow runs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores and summary as JSON.")] = False,
) -> None:
    """Bring the evaluation of the banks up to date and show the R matrix. What is current is not computed again."""
    from samcl_core.config import load_params
    from samcl_core.stages.places import BASE
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    root = settings.root()
    Workspace(root).refresh_code()
    params = load_params(root / "params.yaml")
    steps = _steps_of(params, step)
    with Board() as board:
        for target in [*("base" if name == BASE else f"evaluate@{name}" for name in steps), "report"]:
            board.run(target, partial(repro_stage, root, target))
    runs = _log_runs(root, params, steps) if log else {}
    answer_with_r_matrix(root, params, metric, as_json=as_json, stages=board.values(), runs=runs)


def repro_stage(root: Path, target: str, progress: Progress) -> str:
    """Bring one stage up to date; returns ``ran``, ``cached`` or ``skipped``."""
    from tasks.dvc import repro

    return repro(root, target, on_progress=progress)


def _steps_of(params: Params, step: str | None) -> list[str]:
    from samcl_core.errors import UsageError
    from samcl_core.stages.places import BASE

    known = [BASE, *params.steps()]
    if step is None:
        return known
    if step not in known:
        raise UsageError(f"step {step!r} is not in the stream, expected one of {known}", hint="samcl stream")
    return [step]


def _log_runs(root: Path, params: Params, steps: list[str]) -> dict[str, str]:
    from samcl_core.stages.places import BASE
    from tasks.tracking import log_evaluation

    note("writing MLflow runs")
    fitted = [name for name in steps if name == BASE or params.stream[name].fit]
    return {name: log_evaluation(root, params, name) for name in fitted}


def answer_with_r_matrix(
    root: Path, params: Params, metric: str = "iou", *, as_json: bool = False, **more: Any
) -> None:
    """Print the R matrix of the workspace and its main numbers, or all of it and ``more`` as JSON."""
    import json

    from samcl_core.evaluation.rmatrix import read_r_matrix
    from samcl_core.stages.places import Places

    places = Places(root)
    frame = read_r_matrix(places.r_matrix)
    summary = json.loads(places.summary.read_text(encoding="utf-8"))
    if as_json:
        rows = frame.to_dict(orient="records")
        emit_json({"order": list(params.steps()), "r_matrix": rows, "summary": summary, **more})
        return
    show_r_matrix(frame, params, metric)
    say(main_numbers(summary, metric))


def main_numbers(summary: dict[str, Any], metric: str) -> str:
    """The summary's most read numbers on one line; those that do not exist are left out."""
    wanted = {"mean after the last step": "samcl_aa", "forgetting (FM)": "samcl_fm", "zero-shot mean": "zero_shot_mean"}
    found = [f"{text} {summary[f'{metric}/{key}']:.3f}" for text, key in wanted.items() if f"{metric}/{key}" in summary]
    if "selector_accuracy/last_mean" in summary:
        found.append(f"selector accuracy {summary['selector_accuracy/last_mean']:.3f}")
    return ", ".join(found)


def register(
    context: typer.Context,
    step: Annotated[
        str | None, typer.Argument(help="base or a domain of the stream. Default: the newest bank.")
    ] = None,
    bundle_backbone: Annotated[
        bool | None,
        typer.Option(
            "--bundle-backbone/--no-bundle-backbone",
            help="Whether the backbone's weights travel in the version. Default: for sam_nano alone.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print version and lineage as JSON.")] = False,
) -> None:
    """Put a bank into the model registry as candidate. The same bank gets one version, however often this runs."""
    from samcl_core.config import load_params
    from tasks.registry import CANDIDATE, register_bank
    from tasks.tracking import run_url

    settings: Settings = context.obj
    root = settings.root()
    params = load_params(root / "params.yaml")
    name = _steps_of(params, step)[-1] if step else _newest_bank(root, params)
    found = register_bank(root, params, name, bundle_backbone=bundle_backbone)
    if bundle_backbone is not None and not found.created:
        note(
            f"version {found.version} holds this bank already and stays as it is; SAMCL_BUNDLE_BACKBONE=1 or 0 "
            "decides when a flow registers"
        )
    if as_json:
        emit_json(found.values())
        return
    state = "registered" if found.created else "already there"
    say(f"bank {found.digest[:12]} ({name}) is {found.name} version {found.version}, {CANDIDATE}: {state}")
    note(run_url(root, f"models/{found.name}/versions/{found.version}"))


def _newest_bank(root: Path, params: Params) -> str:
    from samcl_core.errors import BankError
    from samcl_core.stages.places import Places

    folder = Places(root).latest_bank(params)
    if folder is None:
        raise BankError(f"{root} has no bank yet", hint="samcl stream")
    return folder.name
