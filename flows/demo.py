"""``samcl demo``: three drawn domains and natural images through the real pipeline, small enough for two cores."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.cli.board import Board
from flows.cli.output import note, say
from flows.cli.running import answer, run_flow
from samcl_core.config import parse_params
from samcl_core.errors import UsageError
from samcl_core.files import write_atomic
from tasks.workspace import Workspace, init_workspace

__all__ = ["DOMAINS", "DemoOptions", "draw_sources", "run_demo"]

DOMAINS = {
    "NaturalScenes": ("natural", "natural"),
    "Polyps": ("polyp", "learn"),
    "Rails": ("rail", "learn"),
    "Camouflage": ("camouflage", "learn"),
}
"""Domain to scene and role, in the order of arrival."""

SIZE_PX = 128
BACKBONE = "sam_nano"


@dataclass(frozen=True)
class DemoOptions:
    """How large the demo is.

    Attributes:
        num_train: training images a domain.
        num_test: test images a domain.
        epochs: epochs a module.
        seed: of the drawings and of the training.
    """

    num_train: int = 48
    num_test: int = 12
    epochs: int = 6
    seed: int = 0


def run_demo(
    folder: Path, options: DemoOptions | None = None, *, keep_server: bool = False, as_json: bool = False
) -> list[Any]:
    """Make the workspace ``folder``, draw the domains, learn them in one stream and show what came out.

    Running it again continues, or shows the result when everything is done.

    Raises:
        UsageError: ``folder`` holds something else than a workspace.
    """
    options = options or DemoOptions()
    started = time.monotonic()
    workspace = _open(folder, options)
    root = workspace.root
    note(f"workspace {root}")
    _say_if_untrained(workspace)
    sources = draw_sources(root / ".samcl" / "drawn", options)

    def call() -> Any:
        from flows.arrival import Arrival
        from flows.stream import domain_stream

        return domain_stream(root, [Arrival(name, str(sources[name]), role) for name, (_, role) in DOMAINS.items()])

    board = Board()
    results: list[Any] = run_flow(root, board, call, keep_server=keep_server)
    answer(root, results, board, as_json=as_json)
    if not as_json:
        for picture in sorted((root / "pictures").rglob("*.png")):
            say(f"  {picture.relative_to(root)}")
    note(f"done in {time.monotonic() - started:.0f} s")
    note(f"next: cd {folder} && samcl bank show && samcl predict IMAGE --point X,Y")
    return results


def draw_sources(folder: Path, options: DemoOptions) -> dict[str, Path]:
    """Draw the domains below ``folder``, the same pictures every time; returns domain to folder."""
    from samcl_core.domains.synthetic import write_domain

    found = {}
    for name, (scene, _) in DOMAINS.items():
        found[name] = folder / name
        write_domain(found[name], scene, options.num_train, options.num_test, SIZE_PX, options.seed)
    return found


def _open(folder: Path, options: DemoOptions) -> Workspace:
    """The demo's workspace; in a new one the numbers of ``options`` are written into ``params.yaml``."""
    path = folder / "params.yaml"
    if folder.is_dir() and any(folder.iterdir()) and not path.is_file():
        raise UsageError(f"{folder} is not empty and no workspace", hint="samcl demo OTHER_FOLDER")
    is_new = not path.is_file()
    workspace = init_workspace(folder, backbone=BACKBONE if is_new else None)
    if is_new:
        _write_numbers(workspace, options)
    return workspace


def _write_numbers(workspace: Workspace, options: DemoOptions) -> None:
    path = workspace.root / "params.yaml"
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", ""))
    with workspace.lock("params"):
        values = yaml.load(path.read_text(encoding="utf-8"))
        values["seed"] = options.seed
        values["train"]["epochs"] = options.epochs
        stream = io.StringIO()
        yaml.dump(values, stream)
        parse_params(YAML(typ="safe", pure=True).load(stream.getvalue()))
        write_atomic(path, stream.getvalue().encode())


def _say_if_untrained(workspace: Workspace) -> None:
    from samcl_core.backbones import load_backbone

    backbone = load_backbone(workspace.params().backbone)
    if not backbone.is_pretrained:
        note(
            f"note: the backbone {backbone.name} is untrained (random weights). The demo shows the pipeline;"
            " its masks and scores are poor, and say nothing about the method."
        )
