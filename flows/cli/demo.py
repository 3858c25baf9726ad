"""``samcl demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.running import JsonOption, KeepOption

__all__ = ["demo"]


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The workspace of the demo; made when absent.")] = Path("demo"),
    train: Annotated[int, typer.Option(min=2, help="Training images a domain.")] = 48,
    test: Annotated[int, typer.Option(min=1, help="Test images a domain.")] = 12,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs a module.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of images and training.")] = 0,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw three small domains and natural images, and run them through the whole pipeline."""
    from flows.demo import DemoOptions, run_demo

    options = DemoOptions(num_train=train, num_test=test, epochs=epochs, seed=seed)
    run_demo(folder, options, keep_server=keep_server, as_json=as_json)
