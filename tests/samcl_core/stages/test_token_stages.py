"""MoDA's selector in a workspace: images of every domain go into the banks, and a step through a back-fill."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from samcl_core.bank import Bank, verify_bank
from samcl_core.config import Params, parse_params
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import ConfigError, DataError
from samcl_core.evaluation import read_r_matrix
from samcl_core.selectors import TokenSelector
from samcl_core.selectors.images import ImageBuffers
from samcl_core.stages.places import BASE, Places

SCENES = {"Polyps": "polyp", "Cracks": "crack", "Nature": "natural"}


def make_params(*, fit_first: bool = True, **tokens: Any) -> Params:
    return parse_params(
        {
            "backbone": {"name": "tiny"},
            "train": {"epochs": 1, "batch_size": 4},
            "selector": {"kind": "tokens", "tokens": {"buffer_size": 3, "epochs": 2, **tokens}},
            "domains": {name: {"role": "natural" if name == "Nature" else "learn"} for name in SCENES},
            "modules": {"Polyps": {}, "Cracks": {}},
            "stream": {"Polyps": {"previous": BASE, "fit": fit_first}, "Cracks": {"previous": "Polyps"}},
        }
    )


def run(root: Path, params: Params, stage: str, domain: str = "") -> None:
    importlib.import_module(f"samcl_core.stages.{stage}").run(root, params, domain)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for name, scene in SCENES.items():
        write_domain(root / "data" / "raw" / name, scene, 5, 2, 64, 0)
        for stage in ("ingest", "points", "embed"):
            run(root, make_params(), stage, name)
    for name in ("Polyps", "Cracks"):
        run(root, make_params(), "train", name)
    return root


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "workspace")


def banks(root: Path, params: Params) -> Bank:
    run(root, params, BASE)
    for name in ("Polyps", "Cracks"):
        run(root, params, "bank", name)
    return Bank.load(Places(root).bank("Cracks"))


def test_a_stream_with_tokens(workspace: Path) -> None:
    places, params = Places(workspace), make_params()
    bank = banks(workspace, params)
    assert verify_bank(places.bank("Cracks")) == []
    assert isinstance(bank.selector, TokenSelector) and isinstance(bank.state, ImageBuffers)
    assert (bank.selector.domains, bank.selector.natural, bank.selector.depth) == (("Polyps", "Cracks"), ("Nature",), 2)
    assert sorted(bank.state.classes) == sorted(SCENES)
    assert all(kept.shape == (3, 64, 64, 3) for kept in bank.state.classes.values())
    before = Bank.load(places.bank("Polyps"))
    assert isinstance(before.state, ImageBuffers)
    assert torch.equal(before.state.classes["Polyps"], bank.state.classes["Polyps"]), "stored images never change"
    for name in ("Polyps", "Cracks"):
        run(workspace, params, "evaluate", name)
    frame = read_r_matrix(places.scores("Cracks"))
    scored = frame[(frame["metric"] == "selector_accuracy") & (frame["step"] == 2)]
    assert set(scored["domain"]) == set(SCENES)
    assert scored["value"].between(0, 1).all()


def test_a_back_fill_ends_in_the_same_bytes(workspace: Path) -> None:
    digest = banks(workspace, make_params()).digest
    assert banks(workspace, make_params(fit_first=False)).digest == digest
    assert banks(workspace, make_params(epochs=3)).digest != digest


def test_images_that_changed_are_refused(workspace: Path) -> None:
    places, params = Places(workspace), make_params()
    run(workspace, params, BASE)
    other = next((places.domain("Cracks") / "train" / "images").iterdir()).read_bytes()
    for image in (places.domain("Polyps") / "train" / "images").iterdir():
        image.write_bytes(other)
    with pytest.raises(DataError, match="changed since it was ingested"):
        run(workspace, params, "bank", "Polyps")


def test_a_depth_that_is_not_there_is_a_problem_of_the_params(workspace: Path) -> None:
    params = make_params(depth=9)
    run(workspace, params, BASE)
    with pytest.raises(ConfigError, match=r"tokens\.depth is 9, expected 1 to 4 for tiny"):
        run(workspace, params, "bank", "Polyps")
