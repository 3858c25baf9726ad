"""Serving: mixed domains in one batch, forced modules, plain SAM, prompts that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import tiny_backbone
from samcl_core.bank import Bank, Module
from samcl_core.config import SelectorParams
from samcl_core.errors import BackboneMismatch, PromptError, UsageError
from samcl_core.inference import Prompt, Segmenter
from samcl_core.inference.segmenter import stack_prompts
from samcl_core.strategies import base_bank, extend_bank
from samcl_core.training import resize_logits

COLOURS = {"Red": (220, 30, 30), "Green": (30, 200, 60)}


def picture(colour: tuple[int, int, int], seed: int, height: int = 48, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)


def make_bank() -> Bank:
    backbone = tiny_backbone()
    adapter = build_adapter("augmodule", backbone.site)
    params = SelectorParams(kind="gaussian")
    bank = base_bank(backbone.name, backbone.sha256, {}, params, 0)
    for number, (name, colour) in enumerate(COLOURS.items()):
        generator = torch.Generator().manual_seed(number)
        tensors = {k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in adapter.fresh(number).items()}
        pixels = torch.stack([backbone.preprocess(picture(colour, seed)) for seed in range(12)])
        module = Module(
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
            tensors=tensors,
        )
        bank = extend_bank(bank, module, backbone.prefix(pixels).embedding, params, 0)
    return bank


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny_backbone(), make_bank())


POINTS = Prompt(((500.0, 500.0), (300.0, 700.0), (800.0, 200.0)), (1, 1, 0))


def test_a_mixed_batch_is_one_pass_and_equals_single_images(segmenter: Segmenter) -> None:
    names = ["Red", "Green", "Red", "plain"]
    images = [picture(COLOURS.get(name, (20, 20, 200)), 100 + i) for i, name in enumerate(names)]
    prompts = [POINTS] * 4
    passes = []
    suffix = segmenter.backbone.suffix
    segmenter.backbone.suffix = lambda *args, **more: passes.append(1) or suffix(*args, **more)  # type: ignore[method-assign]
    try:
        together = segmenter.predict(images, prompts, names)
    finally:
        del segmenter.backbone.suffix
    assert len(passes) == 1
    for image, prompt, name, answer in zip(images, prompts, names, together, strict=True):
        alone = segmenter.predict([image], [prompt], name)[0]
        assert answer.module == alone.module == name
        assert answer.score == pytest.approx(alone.score, abs=1e-5)
        assert np.mean(answer.mask != alone.mask) < 1e-3


def test_the_selector_routes_each_image(segmenter: Segmenter) -> None:
    images = [picture(colour, 200 + i) for i, colour in enumerate(COLOURS.values())]
    answers = segmenter.predict(images, [POINTS] * 2)
    assert [answer.module for answer in answers] == list(COLOURS)
    assert all(answer.novelty <= 1 and 0.5 < answer.confidence <= 1 for answer in answers)


def test_an_image_of_no_domain_gets_the_untouched_backbone(segmenter: Segmenter) -> None:
    strange = np.random.default_rng(5).integers(0, 2, (64, 64, 1)).repeat(3, 2).astype(np.uint8) * 255
    answer = segmenter.predict([strange], [POINTS])[0]
    plain = Segmenter(tiny_backbone()).predict([strange], [POINTS])[0]
    assert answer.module == "plain"
    assert answer.novelty > 1
    assert np.array_equal(answer.mask, plain.mask)
    assert answer.score == plain.score


def test_plain_is_plain_bit_for_bit(segmenter: Segmenter) -> None:
    images = [picture(COLOURS["Red"], 300 + i) for i in range(3)]
    forced = segmenter.predict(images, [POINTS] * 3, "plain")
    untouched = Segmenter(tiny_backbone()).predict(images, [POINTS] * 3)
    for one, other in zip(forced, untouched, strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert one.score == other.score


def test_modules_change_masks(segmenter: Segmenter) -> None:
    image = [picture(COLOURS["Red"], 400)]
    masks = {name: segmenter.predict(image, [POINTS], name)[0].mask for name in ("plain", *COLOURS)}
    assert np.any(masks["Red"] != masks["plain"])
    assert np.any(masks["Red"] != masks["Green"])


def test_masks_have_the_size_of_their_image_whatever_the_prompts(segmenter: Segmenter) -> None:
    images = [picture((9, 9, 9), 0, height, width) for height, width in ((33, 70), (64, 64), (90, 20))]
    prompts = [POINTS, Prompt(((5.0, 5.0),), (1,)), Prompt(box=(10.0, 10.0, 900.0, 800.0))]
    answers = segmenter.predict(images, prompts, batch_size=2)
    assert [answer.mask.shape for answer in answers] == [(33, 70), (64, 64), (90, 20)]
    assert all(answer.mask.dtype == bool for answer in answers)


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_images_of_one_size_are_enlarged_together_and_are_the_same(segmenter: Segmenter, upsampling: str) -> None:
    sizes = [(33, 70), (64, 64), (33, 70), (1100, 990), (33, 70), (1100, 990)]
    images = [picture((90, 90 + i, 9), i, *size) for i, size in enumerate(sizes)]
    together = segmenter.predict(images, [POINTS] * 6, "Red", upsampling=upsampling)
    prefix = segmenter.backbone.prefix(torch.stack([segmenter.backbone.preprocess(image) for image in images]))
    masks, _ = segmenter.segment(prefix, stack_prompts([POINTS] * 6), "Red")
    for row, (answer, size) in enumerate(zip(together, sizes, strict=True)):
        enlarged = resize_logits(masks.logits[row : row + 1], size, upsampling)
        assert np.array_equal(answer.mask, (enlarged[0, 0] >= 0).numpy())


def test_one_module_in_memory_at_a_time_gives_the_same_answers(segmenter: Segmenter) -> None:
    bounded = Segmenter(tiny_backbone(), segmenter.bank, modules_gb=1e-9)
    names = ["Red", "plain", "Red", "Green", "Green", "plain", "Red"]
    images = [picture(COLOURS.get(name, (20, 20, 200)), 500 + i) for i, name in enumerate(names)]
    for size in (1, 2, 7):
        expected = segmenter.predict(images, [POINTS] * 7, names, batch_size=size)
        for answer, other in zip(bounded.predict(images, [POINTS] * 7, names, batch_size=size), expected, strict=True):
            assert (answer.module, answer.score) == (other.module, other.score)
            assert np.array_equal(answer.mask, other.mask)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Prompt(), "no prompt"),
        (lambda: Prompt(((1.0, 2.0),), ()), r"1 point\(s\) but 0 label"),
        (lambda: Prompt(((1024.0, 2.0),), (1,)), r"point \(1024, 2\) is outside"),
        (lambda: Prompt(((float("nan"), 2.0),), (1,)), "outside"),
        (lambda: Prompt(((1.0, 2.0),), (2,)), "label 2, expected 1"),
        (lambda: Prompt(box=(5.0, 5.0, 5.0, 9.0)), "is empty"),
        (lambda: Prompt(box=(5.0, 5.0, 2000.0, 9.0)), r"box .* is outside"),
    ],
)
def test_prompts_that_cannot_be(make: object, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        make()  # type: ignore[operator]


def test_wrong_names_and_counts(segmenter: Segmenter) -> None:
    image = picture((1, 2, 3), 0)
    with pytest.raises(UsageError, match=r"module 'Blue', expected 'auto' or one of \['plain', 'Red', 'Green'\]"):
        segmenter.predict([image], [POINTS], "Blue")
    with pytest.raises(PromptError, match=r"2 image\(s\) but 1 prompt"):
        segmenter.predict([image, image], [POINTS])


def test_a_bank_for_another_backbone_is_refused(tmp_path: Path) -> None:
    from samcl_core.config import BackboneParams

    make_bank().save(tmp_path / "bank")
    with pytest.raises(BackboneMismatch):
        Segmenter.load(tmp_path / "bank", BackboneParams(name="sam_nano"))
    assert Segmenter.load(tmp_path / "bank", BackboneParams(name="tiny")).names == ("plain", "Red", "Green")
