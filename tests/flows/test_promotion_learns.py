"""Wrong masks arrive through the real flow: not champion, with reasons; force, rollback, a champion scored again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.arrival import Arrival, domain_arrival
from flows.promotion import NOT_PROMOTED, bank_promotion
from flows.stream import domain_stream
from samcl_core.domains import load_image
from samcl_core.inference import Prompt, Segmenter
from tasks.ledger import read_ledger
from tasks.promotion import rollback
from tasks.registry import load_registered
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("server")]

EASY = "max_drop: 1.0\n  max_natural_drop: 1.0\n  min_selector_accuracy: 0.0\n  require_better_than_zero_shot: false"
STRICT = "max_drop: 0.01\n  max_natural_drop: 1.0\n  min_selector_accuracy: 0.0\n  require_better_than_zero_shot: true"


def edit(workspace: Workspace, changes: dict[str, str]) -> None:
    path = workspace.root / "params.yaml"
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def with_wrong_masks(source: Path, target: Path) -> Path:
    """Every training mask marks a corner instead of the object."""
    shutil.copytree(source, target)
    for path in (target / "train" / "masks").glob("*.png"):
        mask = np.zeros_like(np.asarray(Image.open(path)))
        mask[:6, :6] = 255
        Image.fromarray(mask).save(path)
    return target


def mask_of(root: Path, workspace: Workspace) -> Any:
    """What a client gets that asks for the champion."""
    segmenter = Segmenter.load(load_registered(root), workspace.params().backbone)
    image = sorted((root / "data" / "Shadow" / "test" / "images").iterdir())[0]
    return segmenter.predict([load_image(image)], [Prompt(((512.0, 512.0),), (1,))], "auto")[0]


def test_wrong_masks_do_not_become_champion(tmp_path: Path, drawn: Path) -> None:
    workspace = init_workspace(tmp_path / "W", device="cpu")
    root = workspace.root
    template = (root / "params.yaml").read_text()
    start = template.index("  max_drop:")
    section = template[start : template.index("\n\n", start)]
    short = {
        "epochs: 20": "epochs: 60",
        "lr: 0.005": "lr: 0.05",
        "buffer_size: 300": "buffer_size: 8\n  epochs: 2",
        section: "  " + EASY,
    }
    edit(workspace, short)

    # A person's thresholds let the first bank through, whatever an untrained backbone makes of it.
    sources = [Arrival("Photos", str(drawn / "natural"), "natural"), Arrival("Polyp", str(drawn / "polyp"))]
    state = domain_stream(root, sources, return_state=True)
    assert state.name == "Completed"
    assert state.result()[1].registered["promotion"]["promoted"]
    edit(workspace, {EASY: STRICT})

    wrong = with_wrong_masks(drawn / "shadow", tmp_path / "wrong")
    state = domain_arrival(root, wrong, "Shadow", return_state=True)
    assert (state.is_completed(), state.name) == (True, NOT_PROMOTED)
    decision = state.result().registered["promotion"]
    assert (decision["version"], decision["champion"], decision["promoted"]) == ("2", "1", False)
    failed = {gate["name"]: gate["reason"] for gate in decision["gates"] if not gate["passed"]}
    assert failed["better_than_zero_shot"].startswith("Shadow ")
    before = mask_of(root, workspace)

    assert bank_promotion(root, "2", actor="me@here", force=True, reason="to see it")["forced"]
    assert load_registered(root).name == decision["bank"]
    rollback(root, reason="seen", actor="me@here")
    after = mask_of(root, workspace)
    assert (after.mask == before.mask).all() and (after.score, after.module) == (before.score, before.module)

    # Other test data of a domain that the champion knows: the champion is no step of the workspace any more.
    changed = tmp_path / "changed"
    shutil.copytree(drawn / "polyp", changed)
    name = sorted(path.name for path in (changed / "test" / "images").iterdir())[0]
    for kind in ("images", "masks"):
        (changed / "test" / kind / name).unlink()
    image = sorted((changed / "train" / "images").iterdir())[0]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    domain_arrival(root, changed, "Polyp")
    entry = read_ledger(root).entries[-1]
    gates = {gate["name"]: gate for gate in entry.gates}
    assert (entry.version, entry.before and entry.before["version"]) == ("4", "1")
    assert gates["max_drop"]["found"] is not None, gates["max_drop"]["reason"]
    assert "the champion" in gates["max_drop"]["reason"]
