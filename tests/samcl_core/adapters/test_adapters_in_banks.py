"""Modules of every kind in a bank on disk, and behind a segmenter that serves several domains in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter, registered_adapters
from samcl_core.backbones import tiny_backbone
from samcl_core.bank import Bank, Module
from samcl_core.config import SelectorParams
from samcl_core.inference import Prompt, Segmenter
from samcl_core.strategies import base_bank, extend_bank

COLOURS = {"Red": (220, 30, 30), "Green": (30, 200, 60), "Blue": (20, 20, 200)}
POINTS = Prompt(((500.0, 500.0), (300.0, 700.0)), (1, 0))


def picture(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 20, (48, 80, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", registered_adapters())
def test_saved_loaded_and_served(kind: str, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    adapter = build_adapter(kind, backbone.site)
    params = SelectorParams(kind="gaussian")
    bank = base_bank(backbone.name, backbone.sha256, {}, params, 0)
    for number, (name, colour) in enumerate(COLOURS.items()):
        draw = torch.Generator().manual_seed(number)
        tensors = {k: v + 0.1 * torch.randn(v.shape, generator=draw) for k, v in adapter.fresh(number).items()}
        module = Module(
            domain=name,
            kind=kind,
            parameters=adapter.parameters(),
            backbone=backbone.name,
            backbone_sha256=backbone.sha256,
            split=backbone.site.blocks[0],
            data_digest="0" * 64,
            seed=0,
            code="test",
            metrics={},
            tensors=tensors,
        )
        pixels = torch.stack([backbone.preprocess(picture(colour, seed)) for seed in range(12)])
        bank = extend_bank(bank, module, backbone.prefix(pixels).embedding, params, 0)
    bank.save(tmp_path / "bank")
    loaded = Bank.load(tmp_path / "bank", backbone_sha256=backbone.sha256)
    assert loaded.digest == bank.digest
    segmenter = Segmenter(backbone, loaded)
    names = ["Red", "Green", "plain", "Blue", "Red"]
    images = [picture(COLOURS.get(name, (128, 128, 128)), 100 + i) for i, name in enumerate(names)]
    together = segmenter.predict(images, [POINTS] * 5, names)
    plain = Segmenter(backbone).predict(images, [POINTS] * 5)
    for image, name, answer, untouched in zip(images, names, together, plain, strict=True):
        alone = segmenter.predict([image], [POINTS], name)[0]
        assert answer.module == alone.module == name
        assert answer.score == pytest.approx(alone.score, abs=1e-4)
        assert np.mean(answer.mask != alone.mask) < 2e-3
        if name == "plain":
            assert answer.score == pytest.approx(untouched.score, abs=1e-5)
    assert [answer.module for answer in segmenter.predict(images[:2], [POINTS] * 2)] == names[:2]
    assert any(np.any(answer.mask != other.mask) for answer, other in zip(together, plain, strict=True))
