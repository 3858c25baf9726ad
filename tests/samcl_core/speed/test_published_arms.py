"""Both arms of every case do the same work: with the options of the published code they compute the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from torch import nn

from samcl_core.backbones import NanoConfig, Prompts
from samcl_core.speed import (
    VIT_B,
    Case,
    Network,
    Setup,
    evaluate_case,
    many_modules_case,
    memory_case,
    mixed_batch_case,
    prefix_read_case,
    prefix_write_case,
    selector_arrival_case,
    selector_fit_case,
    serve_case,
    train_case,
)
from samcl_core.speed.ground import build_module_kind, random_module
from samcl_core.speed.published import PublishedModule, PublishedSam, published_loss
from samcl_core.training.losses import mask_loss

TINY = Network("tiny", "tiny", NanoConfig(64, 8, 16, 4, 2, 3, (1, 3), 16, 2, 32, 4))
REFERENCE = "reference"


def test_the_published_forward_equals_ours_with_its_options() -> None:
    backbone = TINY.backbone("cpu")
    adapter = build_module_kind(backbone, REFERENCE)
    tensors = random_module(adapter, 3)
    module = PublishedModule(adapter.shapes(), adapter.site.grid)
    module.load_state_dict(tensors)
    published = PublishedSam(TINY.official(backbone.module.state_dict(), "cpu"), adapter.site.blocks, module)
    rng = np.random.default_rng(0)
    pixels = torch.stack([backbone.preprocess(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(2)])
    points = np.array([[[100.5, 900.0], [512, 7], [3, 1023]], [[40, 40], [41, 40], [700, 333]]], np.float32)
    prompts = Prompts(torch.from_numpy(points), torch.ones(2, 3, dtype=torch.int64))
    with torch.no_grad():
        logits, scores = published(pixels, list(points))
        ours = backbone.suffix(backbone.prefix(pixels), prompts, adapter.hooks(tensors, prompts))
        plain = backbone.suffix(backbone.prefix(pixels), prompts)
    torch.testing.assert_close(logits, ours.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, ours.iou, atol=1e-5, rtol=1e-4)
    assert (plain.logits - ours.logits).abs().max() > 0.01, "the module does nothing, so nothing was compared"


def test_the_published_loss_equals_ours_with_its_reduction() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, masks = (
        torch.randn(2, 1, 24, 20, generator=generator) * 3,
        torch.rand(2, 24, 20, generator=generator).round(),
    )
    scores = torch.rand(2, 1, generator=generator)
    expected = mask_loss(logits, masks, scores, "reference").total
    torch.testing.assert_close(published_loss(logits, masks, scores), expected)


def test_the_baseline_is_the_official_network_whatever_we_do_to_ours() -> None:
    backbone = TINY.backbone("cpu")
    official = TINY.official(backbone.module.state_dict(), "cpu")
    own = {id(part) for part in backbone.module.modules()}
    encoder: nn.Module = official.get_submodule("image_encoder")
    checked = 0
    for part in encoder.modules():
        assert id(part) not in own
        for kind in (Attention, Block, ImageEncoderViT):
            if isinstance(part, kind):
                assert "forward" not in vars(part)
                assert type(part).forward.__module__ == "segment_anything.modeling.image_encoder"
                checked += 1
    assert checked == 9


def test_an_epoch_of_both_arms_learns_the_same(tmp_path: Path) -> None:
    arms = train_case(TINY, {}, (), REFERENCE).arms(Setup(tmp_path, 3))
    # Ours is the second of two epochs, from the same tensors each time; the baseline goes on from epoch to epoch.
    ours = arms.ours()
    first, second = arms.baseline(), arms.baseline()
    step = abs(first.result - second.result)
    assert step > 1e-3, "no step was made, so nothing was compared"
    assert ours.result == pytest.approx(second.result, abs=0.05 * step)
    assert ours.amount > 0


@pytest.mark.parametrize("is_warm", [False, True])
def test_evaluations_agree_on_modules_and_scores(tmp_path: Path, is_warm: bool) -> None:
    arms = evaluate_case(TINY, {}, (), is_warm=is_warm, profile=REFERENCE).arms(Setup(tmp_path, 6))
    ours, baseline = arms.ours(), arms.baseline()
    assert [name for name, _ in ours] == [name for name, _ in baseline]
    assert len({name for name, _ in ours} - {"plain"}) > 1
    assert [iou for _, iou in ours] == pytest.approx([iou for _, iou in baseline], abs=2e-3)
    assert arms.ours() == ours, "a second turn scores the same"


def test_with_the_default_options_every_image_gets_a_module_in_both_arms(tmp_path: Path) -> None:
    arms = evaluate_case(TINY, {}, ()).arms(Setup(tmp_path, 5))
    ours, baseline = ([name for name, _ in arm()] for arm in (arms.ours, arms.baseline))
    assert ours == baseline
    assert "plain" not in ours


def test_served_masks_agree(tmp_path: Path) -> None:
    arms = serve_case(TINY, "throughput", 4, (), REFERENCE).arms(Setup(tmp_path))
    ours, baseline = arms.ours(), arms.baseline()
    assert len(ours) == len(baseline) == 4
    assert len({name for _, name in ours}) > 1
    for (mask, name), (expected, expected_name) in zip(ours, baseline, strict=True):
        assert name == expected_name
        assert mask.shape == expected.shape == (512, 512)
        assert np.mean(mask != expected) < 2e-3


def test_a_mixed_batch_answers_as_single_domains_do(tmp_path: Path) -> None:
    arms = mixed_batch_case(TINY, ()).arms(Setup(tmp_path, 3))
    ours, baseline = arms.ours(), arms.baseline()
    torch.testing.assert_close(ours[0], baseline[0], atol=1e-2, rtol=1e-2)
    assert (ours[1] - baseline[1]).abs().max() > 0.05


def test_many_modules_give_the_tensors_that_few_give(tmp_path: Path) -> None:
    arms = many_modules_case(TINY).arms(Setup(tmp_path, 12))
    ours, baseline = arms.ours(), arms.baseline()
    assert set(ours) == set(baseline)
    for name, tensor in ours.items():
        assert len(tensor) == 8
        assert torch.equal(tensor, baseline[name])
    assert not torch.equal(ours["A.weight"][0], ours["A.weight"][1])


@pytest.mark.parametrize("make", [selector_fit_case, selector_arrival_case])
def test_both_selectors_know_all_domains(tmp_path: Path, make: Callable[[int, int], Case]) -> None:
    arms = make(3, 16).arms(Setup(tmp_path, 100))
    ours = arms.ours()
    assert ours.domains == ("Domain0000", "Domain0001", "Domain0002")
    assert arms.baseline().layer4.out_features == 3
    again = arms.ours().state()[1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.state()[1].items()), "turns differ"


def test_prefixes_are_written_and_read(tmp_path: Path) -> None:
    arms = prefix_write_case(TINY, ()).arms(Setup(tmp_path / "write", 3))
    (tmp_path / "write").mkdir()
    num_numbers = 3 * 8 * 8 * 16
    assert 4 * num_numbers < arms.ours() < 6 * num_numbers
    assert 4 * num_numbers < arms.baseline() < 8 * num_numbers
    (tmp_path / "read").mkdir()
    arms = prefix_read_case(TINY, ()).arms(Setup(tmp_path / "read", 3))
    ours, baseline = arms.ours(), arms.baseline()
    assert len(ours) == len(baseline) == 3
    torch.testing.assert_close(ours.tokens, baseline.tokens, atol=5e-3, rtol=5e-3)


@pytest.mark.slow
def test_the_memory_of_both_steps_is_measured_apart(tmp_path: Path) -> None:
    case: Case = memory_case(TINY, (), REFERENCE)
    arms = case.arms(Setup(tmp_path, 2))
    ours, baseline = arms.ours(), arms.baseline()
    assert ours.result == pytest.approx(baseline.result, rel=1e-4)
    assert 2**16 < ours.amount < 2**32
    assert 2**16 < baseline.amount < 2**32


@pytest.mark.slow
def test_drawn_weights_of_vit_b_give_finite_masks() -> None:
    backbone = VIT_B.backbone("cpu")
    prompts = Prompts(torch.tensor([[[500.0, 500.0]]]), torch.ones(1, 1, dtype=torch.int64))
    found = backbone.suffix(backbone.prefix(torch.zeros(1, 3, 1024, 1024)), prompts)
    assert bool(torch.isfinite(found.logits).all())
    assert bool(torch.isfinite(found.iou).all())
