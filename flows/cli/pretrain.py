"""``samcl pretrain``: weights for ``sam_nano`` from drawn scenes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.output import StepProgress, emit_json, note, say, show_table

if TYPE_CHECKING:
    import torch

    from samcl_core.training.pretrain import PretrainOptions
    from samcl_core.training.pretrain_record import Curve

__all__ = ["pretrain"]

SEEDS = (0, 1, 2)


def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder for weights, model card, checkpoints and the MLflow run.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 12_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = 4,
    objects: Annotated[int, typer.Option(min=1, help="Prompted objects a scene.")] = 8,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    guided: Annotated[int, typer.Option(min=0, help="Steps in which the loss goes over to SAM's own.")] = 6_000,
    decay: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps, at the end, in which the rate falls.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and scenes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes ahead (CPU).")] = 1,
    score_images: Annotated[int, typer.Option(min=1, help="Held-out pictures a kind and seed for the scores.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Pretrain sam_nano on drawn scenes, score it, and write weights with a model card.

    Stopped, the same command continues at its last checkpoint. With other --steps or --decay it continues at the last
    one before the learning rate fell.
    """
    from samcl_core.backbones import resolve_device
    from samcl_core.training.pretrain import PretrainOptions
    from samcl_core.training.pretrain_record import Curve
    from tasks.pretraining import CURVE

    options = PretrainOptions(
        steps=steps, batch_size=batch_size, objects=objects, lr=lr, guided=guided, decay=decay, seed=seed
    )
    where, curve = resolve_device(device), Curve(out / CURVE, steps=steps)
    with StepProgress("pretrain") as progress:
        network = _train(out, options, where, workers, curve, progress)
        about = _write(out, network, options, where, curve, score_images, progress)
    run_id = _log(out)
    _answer(out, about, run_id, as_json)


def _train(
    out: Path, options: PretrainOptions, device: torch.device, workers: int, curve: Curve, progress: StepProgress
) -> Any:
    from samcl_core.training.pretrain import fresh_nano, pretrain

    def on_step(done: int, numbers: dict[str, float]) -> None:
        curve(done, numbers)
        progress(f"loss {numbers['loss']:.3f}, IoU {numbers['iou']:.3f}", done, options.steps)

    return pretrain(
        fresh_nano(options.seed),
        options,
        device=str(device),
        checkpoint=out / "pretrain.safetensors",
        on_step=on_step,
        num_workers=workers,
    )


def _write(
    out: Path,
    network: Any,
    options: PretrainOptions,
    device: torch.device,
    curve: Curve,
    num_images: int,
    progress: StepProgress,
) -> dict[str, Any]:
    """Weights, their JSON file and the model card; returns what the JSON file holds."""
    from samcl_core.backbones import load_nano, save_nano
    from samcl_core.files import write_atomic
    from samcl_core.training.model_card import model_card
    from samcl_core.training.pretrain_record import provenance
    from samcl_core.training.zero_shot import score_zero_shot
    from tasks.pretraining import CARD, WEIGHTS

    path = out / WEIGHTS
    save_nano(network, path)
    scores = score_zero_shot(load_nano(path).to(device), num_images=num_images, seeds=SEEDS, progress=progress)
    about = provenance(
        options,
        curve.points,
        scores,
        device=device,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_images=num_images,
        seeds=SEEDS,
    )
    sha256 = save_nano(network, path, about)
    num_bytes = path.stat().st_size
    write_atomic(out / CARD, model_card(about, sha256=sha256, num_bytes=num_bytes).encode())
    return {"sha256": sha256, "num_bytes": num_bytes, **about}


def _log(out: Path) -> str | None:
    """The MLflow run; without MLflow there is none, and the training is not lost."""
    from tasks.pretraining import log_pretraining
    from tasks.tracking import RegistryUnavailable

    try:
        return log_pretraining(out)
    except RegistryUnavailable as exc:
        note(f"warning: no MLflow run was written: {exc.message}")
        note("next: the same command writes it later; the weights are whole")
        return None


def _answer(out: Path, about: dict[str, Any], run_id: str | None, as_json: bool) -> None:
    from samcl_core.training.model_card import score_rows
    from tasks.pretraining import CARD, WEIGHTS

    path = (out / WEIGHTS).resolve()
    if as_json:
        emit_json({"weights": str(path), "card": str(path.with_name(CARD)), "run_id": run_id, **about})
        return
    header, rows = score_rows(about)
    show_table(header, rows, "zero-shot IoU", numbers=True)
    say(f"weights: {path} ({about['num_bytes'] / 1e6:.2f} MB)")
    say(f"model card: {path.with_name(CARD)}")
    say("in params.yaml, under backbone:")
    say(f"  checkpoint: {path}\n  sha256: {about['sha256']}")
