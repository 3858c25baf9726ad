"""The steps of the pipeline with other kinds of modules than the default one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import load_backbone
from samcl_core.bank import Bank, Module
from samcl_core.config import parse_params
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import ConfigError
from samcl_core.evaluation import read_r_matrix
from samcl_core.inference import Segmenter
from samcl_core.stages.places import BASE, Places


def params_of(adapter: dict[str, Any]) -> Any:
    return parse_params(
        {
            "backbone": {"name": "tiny"},
            "adapter": adapter,
            "train": {"epochs": 2, "batch_size": 4},
            "selector": {"kind": "gaussian"},
            "domains": {"Cracks": {}},
            "modules": {"Cracks": {}},
            "stream": {"Cracks": {"previous": BASE}},
        }
    )


def run(root: Path, params: Any, stage: str, domain: str = "") -> None:
    importlib.import_module(f"samcl_core.stages.{stage}").run(root, params, domain)


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "lora", "rank": 3, "alpha": 6.0},
        {"kind": "decoder"},
        {"kind": "hq_decoder"},
        {"kind": "sam_adapter", "reduction": 8},
    ],
    ids=lambda adapter: adapter["kind"],
)
def test_from_images_to_a_bank_that_serves(adapter: dict[str, Any], tmp_path: Path) -> None:
    params, places = params_of(adapter), Places(tmp_path)
    write_domain(tmp_path / "data" / "raw" / "Cracks", "crack", 4, 2, 64, 0)
    for stage in ("ingest", "points", "embed", "train"):
        run(tmp_path, params, stage, "Cracks")
    run(tmp_path, params, BASE)
    run(tmp_path, params, "bank", "Cracks")
    run(tmp_path, params, "evaluate", "Cracks")
    run(tmp_path, params, "report")

    backbone = load_backbone(params.backbone)
    module = Module.load(places.module("Cracks"))
    assert module.kind == adapter["kind"]
    built = build_adapter(module.kind, backbone.site, **module.parameters)
    assert module.shapes == dict(sorted(built.shapes().items()))
    assert any(tensor.any() for tensor in module.tensors.values())
    assert {tensor.dtype for tensor in module.tensors.values()} == {torch.float16}, "the default profile's"
    bank = Bank.load(places.bank("Cracks"), backbone_sha256=backbone.sha256)
    assert Segmenter(backbone, bank).plan == built.plan
    frame = read_r_matrix(places.r_matrix)
    scores = frame[(frame["metric"] == "iou") & (frame["domain"] == "Cracks")].set_index("step")["value"]
    assert set(scores.index) == {0, 1}


def test_an_option_of_another_kind_is_refused_before_any_work(tmp_path: Path) -> None:
    write_domain(tmp_path / "data" / "raw" / "Cracks", "crack", 4, 2, 64, 0)
    params = params_of({"kind": "lora", "num_tokens": 4})
    for stage in ("ingest", "points"):
        run(tmp_path, params, stage, "Cracks")
    with pytest.raises(ConfigError, match=r"adapter lora[\s\S]*unknown options \['num_tokens'\]"):
        run(tmp_path, params, "train", "Cracks")
