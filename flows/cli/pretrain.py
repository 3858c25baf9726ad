"""``samcl pretrain``: weights for ``sam_nano`` from drawn scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import StepProgress, say

__all__ = ["pretrain"]


def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder for sam_nano.safetensors, sam_nano.json and the checkpoint.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 16_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = 4,
    objects: Annotated[int, typer.Option(min=1, help="Prompted objects a scene.")] = 8,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and scenes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes ahead (CPU).")] = 1,
) -> None:
    """Pretrain sam_nano on drawn scenes. Stopped, the same command continues at its last checkpoint."""
    from samcl_core.backbones import resolve_device, save_nano
    from samcl_core.training.pretrain import PretrainOptions, fresh_nano
    from samcl_core.training.pretrain import pretrain as train

    options = PretrainOptions(steps=steps, batch_size=batch_size, objects=objects, lr=lr, seed=seed)
    with StepProgress("pretrain") as progress:

        def report(done: int, numbers: dict[str, float]) -> None:
            progress(f"loss {numbers['loss']:.3f}, IoU {numbers['iou']:.3f}", done, steps)

        network = train(
            fresh_nano(seed),
            options,
            device=str(resolve_device(device)),
            checkpoint=out / "pretrain.safetensors",
            on_step=report,
            num_workers=workers,
        )
    path = out / "sam_nano.safetensors"
    sha256 = save_nano(network, path)
    say(f"weights: {path}")
    say("in params.yaml, under backbone:")
    say(f"  checkpoint: {path.resolve()}\n  sha256: {sha256}")
