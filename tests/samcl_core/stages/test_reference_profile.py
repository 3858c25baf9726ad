"""``profile: reference`` in params.yaml goes through all stages, from pictures to the R matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samcl_core.bank import Bank, verify_bank
from samcl_core.bank.imports import PUBLISHED_OPTIONS
from samcl_core.config import EvaluateParams, Params, load_params
from samcl_core.domains import Domain
from samcl_core.domains.synthetic import write_domain
from samcl_core.evaluation.rmatrix import read_r_matrix
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.selectors import MlpSelector
from samcl_core.stages import bank, base, embed, evaluate, ingest, points, report, train
from samcl_core.stages.places import Places
from samcl_core.training import PrefixCache, learning_rate

PARAMS = """
version: 1
profile: reference
backbone: {name: sam_nano}
train: {epochs: 2, batch_size: 2}
selector: {epochs: 1}
domains:
  Scenes: {role: natural}
  Polyps: {role: learn}
  Cracks: {role: learn}
modules: {Polyps: {}, Cracks: {}}
stream:
  Polyps: {previous: base}
  Cracks: {previous: Polyps}
"""
SCENES = {"Scenes": "natural", "Polyps": "polyp", "Cracks": "crack"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A workspace after both steps."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "params.yaml").write_text(PARAMS)
    params = load_params(root / "params.yaml")
    for name, scene in SCENES.items():
        write_domain(root / "data" / "raw" / name, scene, num_train=4, num_test=2, size_px=96, seed=0)
        for stage in (ingest, points, embed):
            stage.run(root, params, name)
    base.run(root, params)
    for name in params.steps():
        for stage in (train, bank, evaluate):
            stage.run(root, params, name)
    report.run(root, params)
    return root, params


def test_modules_have_the_published_options(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    places = Places(root)
    found = Bank.load(places.bank("Cracks"))
    assert found.names == ("Polyps", "Cracks") and verify_bank(places.bank("Cracks")) == []
    for module in found.modules:
        assert module.parameters == {"rank": 10, **PUBLISHED_OPTIONS}
    options = params.train_of("Polyps")
    assert options.schedule == "cosine_per_iteration"
    last = learning_rate(3, num_steps=4, epochs=2, lr=options.lr, lr_min=options.lr_min, schedule=options.schedule)
    assert f'"lr": {last}' in places.curve("Polyps").read_text(), "after two steps the rate rises again"


def test_selector_has_all_outputs_from_the_first_domain_on(workspace: tuple[Path, Params]) -> None:
    for step in ("Polyps", "Cracks"):
        selector = Bank.load(Places(workspace[0]).bank(step)).selector
        assert isinstance(selector, MlpSelector) and selector.gate is None
        assert selector.logits(torch.zeros(1, 96)).shape == (1, 6)


def test_the_matrix_is_whole_and_masks_are_upsampled_as_published(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    found = read_r_matrix(Places(root).r_matrix)
    cells = set(found[found["metric"] == "iou"][["step", "domain"]].itertuples(index=False, name=None))
    assert cells >= {(0, "Scenes"), (0, "Polyps"), (1, "Polyps"), (1, "Cracks"), (2, "Polyps"), (2, "Cracks")}
    segmenter = Segmenter.load(Places(root).bank("Cracks"), params.backbone)
    assert segmenter.names == ("plain", "Polyps", "Cracks")
    samples, cache = Domain(Places(root).domain("Cracks")).samples("test"), PrefixCache(None, segmenter.backbone)
    cell = found[(found["metric"] == "iou") & (found["step"] == 2) & (found["domain"] == "Cracks")]["value"].item()
    scores = {
        mode: score_samples(segmenter, cache, samples, EvaluateParams(upsampling=mode))["iou"].mean()
        for mode in ("nearest", "bilinear")
    }
    assert scores["nearest"] == pytest.approx(cell) != pytest.approx(scores["bilinear"])
