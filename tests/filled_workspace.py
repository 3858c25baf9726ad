"""A workspace with two learnt domains, made directly: real modules and banks, invented scores, no pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import tiny_backbone
from samcl_core.bank import Module
from samcl_core.config import Params, load_params
from samcl_core.drawing import write_png
from samcl_core.evaluation.rmatrix import write_r_matrix
from samcl_core.files import write_json
from samcl_core.stages import report
from samcl_core.stages.places import Places
from samcl_core.strategies import base_bank, extend_bank

LEARNT = ("Polyps", "Shadows")
NATURAL = "Scenes"
DIGESTS = {"Polyps": "a" * 64, "Shadows": "b" * 64, NATURAL: "c" * 64}
PARAMS = """
version: 1
backbone: {name: tiny}
selector: {kind: gaussian}
domains:
  Scenes: {role: natural}
  Polyps: {role: learn}
  Shadows: {role: learn}
modules: {Polyps: {}, Shadows: {}}
stream:
  Polyps: {previous: base}
  Shadows: {previous: Polyps}
"""
SCORES = {
    "base": [(0, NATURAL, 0.7)],
    "Polyps": [(0, "Polyps", 0.3), (1, "Polyps", 0.8), (1, NATURAL, 0.7)],
    "Shadows": [
        (0, "Shadows", 0.2),
        (1, "Shadows", 0.25),
        (2, "Polyps", 0.75),
        (2, "Shadows", 0.9),
        (2, NATURAL, 0.65),
    ],
}


def fill(root: Path) -> Params:
    """Write the workspace; same bytes every time."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(PARAMS)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    params, places = load_params(root / "params.yaml"), Places(root)
    _fill_banks(params, places)
    for step in ("base", *LEARNT):
        _fill_scores(places, step)
        write_png(places.pictures(step) / f"{step}.png", np.full((8, 8, 3), 90, np.uint8))
    report.run(root, params)
    return params


def _fill_banks(params: Params, places: Places) -> None:
    backbone = tiny_backbone()
    options = params.adapter_of("Polyps")
    adapter = build_adapter(options.kind, backbone.site, **options.model_dump(exclude={"kind"}))
    embeddings = {
        name: torch.randn(12, backbone.site.dim, generator=torch.Generator().manual_seed(seed)) * 0.1 + 3 * seed
        for seed, name in enumerate((NATURAL, *LEARNT))
    }
    bank = base_bank(backbone.name, backbone.sha256, {NATURAL: embeddings[NATURAL]}, params.selector, params.seed)
    bank.save(places.bank("base"))
    for number, name in enumerate(LEARNT):
        module = Module(
            domain=name,
            kind=adapter.kind,
            parameters=adapter.parameters(),
            backbone=backbone.name,
            backbone_sha256=backbone.sha256,
            split=backbone.site.blocks[0],
            data_digest=DIGESTS[name][::-1],
            seed=0,
            code="0.1.0",
            metrics={"num_train": 12, "total": 1.5},
            tensors=adapter.fresh(number),
        )
        module.save(places.module(name))
        curve = [{"epoch": 1, "total": 2.5, "lr": 0.005, "seconds": 1.0}, {"epoch": 2, "total": 1.5, "lr": 0.001}]
        write_json(places.curve(name), {"domain": name, "module": module.digest, "epochs": curve})
        bank = extend_bank(bank, module, embeddings[name], params.selector, params.seed)
        bank.save(places.bank(name))


def _fill_scores(places: Places, step: str) -> None:
    rows = [
        {
            "step": row,
            "domain": domain,
            "metric": metric,
            "value": value if metric != "mae" else 1 - value,
            "n": 4,
            "role": "natural" if domain == NATURAL else "learn",
        }
        for row, domain, value in SCORES[step]
        for metric in ("iou", "f1", "mae", "boundary_iou")
    ]
    found = {f"test_digest/{domain}": DIGESTS[domain] for _, domain, _ in SCORES[step]}
    write_r_matrix(places.scores(step), pd.DataFrame(rows), found)
