"""From published files to masks as a user goes: import, load, predict. Needs no file of the published authors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.bank import app
from samcl_core.bank import Bank, Module, export_samcl
from samcl_core.bank.imports import PUBLISHED_CLASSES
from samcl_core.errors import UnsafeFileError
from samcl_core.inference import Prompt, Segmenter
from samcl_core.selectors import MlpSelector
from samcl_core.selectors.mlp import SelectorMlp

IMAGES = ("Kvasir", "camo", "ISTD", "ISIC", "cod", "COCO", "synthetic")


def recipe_bank(case: Any) -> Bank:
    """Five domains that all have the recipe's module, and the recipe's selector."""
    backbone, dim = case.backbone, case.backbone.site.dim
    network = SelectorMlp(dim, len(PUBLISHED_CLASSES))
    weights = {name: torch.from_numpy(value) for name, value in case.recipe.selector_tensors(dim).items()}
    network.load_state_dict(weights, strict=False)
    modules = [
        Module(
            domain=name,
            kind="augmodule",
            parameters=case.adapter.parameters(),
            backbone=backbone.name,
            backbone_sha256=backbone.sha256,
            split=backbone.site.blocks[0],
            data_digest="unknown",
            seed=0,
            code="recipe",
            metrics={},
            tensors=case.tensors,
        )
        for name in PUBLISHED_CLASSES[:5]
    ]
    selector = MlpSelector(network, PUBLISHED_CLASSES[:5], PUBLISHED_CLASSES[5:])
    return Bank(backbone.name, backbone.sha256, tuple(modules), selector, None, {})


def test_published_files_imported_and_predicted(case: Any, golden: Any, tmp_path: Path) -> None:
    export_samcl(recipe_bank(case), tmp_path / "published")
    sha256 = case.backbone.sha256
    arguments = ["import-samcl", str(tmp_path / "published"), str(tmp_path / "bank"), "--backbone-sha256", sha256]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    bank = Bank.load(tmp_path / "bank", backbone_sha256=sha256)
    assert (bank.backbone, bank.names) == (case.backbone.name, PUBLISHED_CLASSES[:5])

    segmenter = Segmenter(case.backbone, bank)
    points, labels = case.recipe.synthetic_points()
    prompt = Prompt(tuple((float(x), float(y)) for x, y in points), tuple(int(label) for label in labels))
    (found,) = segmenter.predict([case.recipe.synthetic_image()], [prompt], "camo", upsampling=case.upsampling)
    assert found.module == "camo"
    case.check_mask("imported bank: predicted mask, 1024 px", "recipe", found.mask)
    recorded = case.arrays["recipe_iou"].item()
    case.parity("imported bank: predicted IoU", case.label, found.score, recorded, atol=case.tolerance.iou)

    masks, _ = segmenter.segment(case.prefix, case.prompts, "Kvasir")
    case.check_masks("recipe", masks, "imported bank")
    recorded = golden("selector")[f"recipe_{case.backbone.site.dim}_logits_images"][IMAGES.index("synthetic")]
    assert isinstance(bank.selector, MlpSelector)
    logits = bank.selector.logits(case.prefix.embedding)[0]
    case.parity("imported bank: selector logits of an image", case.label, logits, recorded, atol=1e-4)
    routing = segmenter.route(case.prefix.embedding)
    assert routing.names == ((*bank.names, "plain")[int(np.argmax(recorded))],)


class Command:
    """Unpickled by the book, it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("tampered", ["a.pth", "Module_Selector.pth"])
def test_the_command_line_refuses_a_tampered_file_and_writes_nothing(tampered: str, tmp_path: Path) -> None:
    folder, mark = tmp_path / "published", tmp_path / "executed"
    folder.mkdir()
    torch.save(SelectorMlp(16, 2).state_dict(), folder / "Module_Selector.pth")
    torch.save({"A": torch.zeros(2)}, folder / "a.pth")
    torch.save({"A": Command(f"touch {mark}")}, folder / tampered)
    options = ["--backbone", "tiny", "--backbone-sha256", "ab" * 32, "--classes", "a,n", "--natural", "n"]
    result = CliRunner().invoke(app, ["import-samcl", str(folder), str(tmp_path / "bank"), *options])
    assert isinstance(result.exception, UnsafeFileError)
    assert "system" in result.exception.message and tampered in result.exception.message
    assert not mark.exists() and not (tmp_path / "bank").exists()
