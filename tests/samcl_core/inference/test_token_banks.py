"""Banks whose selector looks at images: one pass when predicting, queries on demand where prefixes are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.backbones import NanoConfig, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.backbones.frozen import squash
from samcl_core.backbones.nano import nano_backbone
from samcl_core.backbones.tokens import TokenBackbone
from samcl_core.bank import Bank, Module, verify_bank
from samcl_core.config import EvaluateParams, SelectorParams, TokenParams
from samcl_core.domains import Sample
from samcl_core.errors import BackboneMismatch, UsageError
from samcl_core.files import sha256_file
from samcl_core.inference import Prompt, Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.selectors import TokenEncoder
from samcl_core.strategies import base_bank, extend_bank
from samcl_core.training import PrefixCache

COLOURS = {"Red": (220, 30, 30), "Green": (30, 200, 60), "Nature": (40, 60, 220)}
POINT = Prompt(((500.0, 500.0),), (1,))


def picture(name: str, seed: int, height: int = 48, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    return np.clip(np.asarray(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


def images(name: str, num: int = 6) -> Tensor:
    return torch.stack([torch.from_numpy(squash(picture(name, seed), 64)) for seed in range(num)])


def params_of(form: str) -> SelectorParams:
    tokens = TokenParams(form=form, epochs=3 if form == "two_pass" else 15)
    return SelectorParams(kind="tokens", fallback="novelty", tokens=tokens)


def module_of(name: str, backbone: TokenBackbone) -> Module:
    adapter, generator = build_adapter("augmodule", backbone.site), torch.Generator().manual_seed(len(name))
    return Module(
        domain=name,
        kind=adapter.kind,
        parameters=adapter.parameters(),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        split=backbone.site.blocks[0],
        data_digest="0" * 64,
        seed=0,
        code="test",
        metrics={},
        tensors={k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in adapter.fresh(0).items()},
    )


def make_bank(form: str = "one_pass", backbone: TokenBackbone | None = None) -> Bank:
    backbone, params = backbone or tiny_backbone(), params_of(form)
    bank = base_bank(backbone.name, backbone.sha256, {"Nature": images("Nature")}, params, 0)
    for name in ("Red", "Green"):
        encoder = TokenEncoder.of(backbone, params.tokens.form)
        bank = extend_bank(bank, module_of(name, backbone), images(name), params, 0, encoder=encoder)
    return bank


@pytest.fixture(scope="module")
def bank() -> Bank:
    return make_bank()


@pytest.fixture(scope="module")
def segmenter(bank: Bank) -> Segmenter:
    return Segmenter(tiny_backbone(), bank)


def test_mixed_domains_get_their_modules(segmenter: Segmenter) -> None:
    names = ("Red", "Nature", "Green", "Red")
    found = segmenter.predict([picture(name, 50 + k) for k, name in enumerate(names)], [POINT] * 4)
    assert [one.module for one in found] == ["Red", "plain", "Green", "Red"]


@pytest.mark.parametrize("name", ["Red", "Green"])
def test_masks_are_those_of_the_named_module(segmenter: Segmenter, name: str) -> None:
    chosen, named = (segmenter.predict([picture(name, 60)], [POINT], module)[0] for module in ("auto", name))
    assert chosen.module == named.module == name
    assert np.array_equal(chosen.mask, named.mask) and chosen.score == named.score
    assert named.confidence == 1 and named.novelty == 0


def test_other_forms_and_backbones_serve_as_well() -> None:
    for form, backbone in (("two_pass", tiny_backbone()), ("one_pass", tiny_sam2_backbone())):
        found = Segmenter(backbone, make_bank(form, backbone)).predict([picture("Red", 70)], [POINT])
        assert found[0].module in ("plain", "Red", "Green")


def test_a_prefix_alone_is_not_enough(segmenter: Segmenter) -> None:
    pixels = segmenter.backbone.preprocess(picture("Red", 50))[None]
    prefix, prompts = segmenter.backbone.prefix(pixels), Prompts(torch.full((1, 1, 2), 500.0), torch.ones(1, 1).long())
    with pytest.raises(UsageError, match=r"looks at images, found prefixes alone[\s\S]*looker.query"):
        segmenter.segment(prefix, prompts)
    _, routing = segmenter.segment(prefix, prompts, "Green")
    assert routing.names == ("Green",) and routing.novelty.tolist() == [0]
    assert segmenter.looker is not None
    _, routing = segmenter.segment(prefix, prompts, query=segmenter.looker.query(pixels))
    assert routing.names == ("Red",)


def test_a_bank_comes_back_and_grows(bank: Bank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank")
    assert verify_bank(tmp_path / "bank") == []
    again = Bank.load(tmp_path / "bank")
    assert again.digest == bank.digest
    found = Segmenter(tiny_backbone(), again).predict([picture("Green", 51)], [POINT])
    assert found[0].module == "Green"
    params, backbone = params_of("one_pass"), tiny_backbone()
    more = [
        extend_bank(one, module_of("Blue", backbone), images("Red") // 2, params, 0, encoder=TokenEncoder.of(backbone))
        for one in (bank, again)
    ]
    assert more[0].digest == more[1].digest != bank.digest
    assert more[0].selector.domains == ("Red", "Green", "Blue")


def test_another_backbone_is_refused(bank: Bank) -> None:
    other = nano_backbone("other", NanoConfig(64, 8, 16, 4, 2, 3, (1, 3), 16, 2, 32, 4))
    module = module_of("Blue", tiny_backbone())
    with pytest.raises(BackboneMismatch, match=f"trained through other with sha256 {other.sha256}"):
        extend_bank(bank, module, images("Red"), params_of("one_pass"), 0, encoder=TokenEncoder.of(other))


def test_stored_prefixes_are_scored_with_queries_of_the_images(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample_of(tmp_path, name, k) for k, name in enumerate(("Red", "Green", "Nature"))]
    cache = PrefixCache(None, segmenter.backbone)
    frame = score_samples(segmenter, cache, samples, EvaluateParams(batch_size=2))
    assert frame["module"].tolist() == ["Red", "Green", "plain"]
    assert segmenter.looker is not None
    queries = segmenter.queries(samples, cache)
    assert queries is not None and torch.equal(queries[:1], segmenter.looker.query(cache.pixels(samples[:1])))
    monkeypatch.setattr(cache, "pixels", None)
    again = score_samples(segmenter, cache, samples, EvaluateParams(batch_size=2))
    assert again.equals(frame), "no image is looked at twice"
    named = score_samples(Segmenter(tiny_backbone(), segmenter.bank), cache, samples, EvaluateParams(), module="Red")
    assert set(named["module"]) == {"Red"}, "a named module needs no query"


def sample_of(folder: Path, name: str, seed: int) -> Sample:
    image, mask = folder / f"{name}.png", folder / f"{name}_mask.png"
    Image.fromarray(picture(name, 80 + seed)).save(image)
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((10, 18), (20, 40)))).save(mask)
    return Sample(
        id=f"test/images/{image.name}",
        image=image,
        mask=mask,
        image_sha256=sha256_file(image),
        mask_sha256=sha256_file(mask),
        width=80,
        height=48,
        points=((500.0, 500.0),),
        labels=(1,),
        box=None,
    )
