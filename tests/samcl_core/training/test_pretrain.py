"""Pretraining: scenes follow from seed and step, prompts lie where they should, a killed run continues to the byte."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samcl_core.backbones import load_backbone, save_nano
from samcl_core.config import BackboneParams
from samcl_core.errors import UsageError
from samcl_core.files import digest_files
from samcl_core.training.leaves import draw_leaves
from samcl_core.training.pretrain import (
    PretrainOptions,
    draw_batch,
    fresh_nano,
    grouping_loss,
    learning_rate,
    pretrain,
    prompt_loss,
)
from samcl_core.training.pretrain_options import is_constant

Weights = dict[str, Tensor]

SMALL = PretrainOptions(steps=3, batch_size=2, objects=2, warmup=1, guided=2, decay=0.7, checkpoint_every=1)


def test_scenes_follow_from_the_seed() -> None:
    one, same, other = (draw_leaves(2, 64, torch.Generator().manual_seed(seed), num_layers=4) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.layers, same.layers)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (2, 3, 64, 64)
    assert 0 <= float(one.images.min()) < float(one.images.max()) <= 255
    assert set(one.layers.unique().tolist()) <= set(range(5))
    parts, again = (draw_leaves(2, 64, torch.Generator().manual_seed(1), num_layers=4, has_parts=True) for _ in "ab")
    assert torch.equal(parts.images, again.images)
    assert not torch.equal(parts.images, one.images)


def test_objects_with_parts_come_after_the_guided_steps() -> None:
    early, late = (draw_batch(replace(SMALL, guided=guided), 5).images for guided in (6, 5))
    assert torch.equal(early, draw_batch(replace(SMALL, guided=100), 5).images)
    assert torch.equal(late, draw_batch(replace(SMALL, guided=0), 5).images)
    assert not torch.equal(early, late)


@pytest.mark.parametrize("step", range(12))
def test_prompts_lie_where_they_should(step: int) -> None:
    batch = draw_batch(SMALL, step)
    assert batch.masks.shape == (4, 128, 128)
    assert batch.layers.shape == (2, 128, 128)
    cells = (batch.prompts.points / 8).long()
    for mask, points, labels, weight in zip(batch.masks, cells, batch.prompts.labels, batch.weight, strict=True):
        found = mask[points[:, 1], points[:, 0]]
        assert weight == 0 or torch.equal(found, labels.float())
    if batch.prompts.boxes is not None:
        rows = batch.masks.sum((1, 2)) > 0
        box = batch.prompts.boxes[rows]
        assert bool((box[:, :2] < box[:, 2:]).all())


def test_a_step_is_drawn_alone() -> None:
    assert torch.equal(draw_batch(SMALL, 3).images, draw_batch(SMALL, 3).images)
    assert not torch.equal(draw_batch(SMALL, 3).images, draw_batch(SMALL, 4).images)


def test_loss_of_a_perfect_and_a_wrong_mask() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[:, 2:5, 2:5] = 1
    perfect = (masks * 2 - 1) * 50
    loss, iou = prompt_loss(perfect, torch.ones(2), masks, torch.ones(2))
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert float(iou) == 1
    wrong = torch.stack([perfect[0], -perfect[1]])
    _, half = prompt_loss(wrong, torch.ones(2), masks, torch.ones(2))
    assert float(half) == pytest.approx(0.5)
    only_first, _ = prompt_loss(wrong, torch.ones(2), masks, torch.tensor([1.0, 0.0]))
    assert float(only_first) == pytest.approx(0, abs=1e-5)


def test_numbers_of_the_loss() -> None:
    masks = torch.zeros(1, 4, 4)
    masks[0, 0] = 1  # 4 of 16 pixels; at logit 0 each is right with probability 1/2
    logits, iou = torch.zeros(1, 4, 4), torch.zeros(1)
    ln2, dice = 0.693147, 1 - (2 * 2 + 1) / (8 + 4 + 1)
    own, _ = prompt_loss(logits, iou, masks, torch.ones(1))
    assert float(own) == pytest.approx(20 * ln2 / 4 + dice, rel=1e-5)
    guided, _ = prompt_loss(logits, iou, masks, torch.ones(1), guidance=1.0)
    assert float(guided) == pytest.approx(2 * ln2 + dice, rel=1e-5)
    half, _ = prompt_loss(logits, iou, masks, torch.ones(1), guidance=0.5)
    assert float(half) == pytest.approx((float(own) + float(guided)) / 2, rel=1e-5)


def test_guided_everything_is_background_costs_as_much_as_everything_is_object() -> None:
    masks = torch.zeros(1, 16, 16)
    masks[0, :2, :2] = 1
    mask_term = {}
    for name, logit in (("background", -5.0), ("object", 5.0)):
        for guidance in (0.0, 1.0):
            logits = torch.full((1, 16, 16), logit)
            loss, _ = prompt_loss(logits, torch.zeros(1), masks, torch.ones(1), guidance)
            probability = logits.sigmoid()
            dice = 1 - (2 * (probability * masks).sum() + 1) / (probability.sum() + masks.sum() + 1)
            real = masks.mean() if logit > 0 else torch.tensor(0.0)
            mask_term[name, guidance] = float(loss - dice - real.square())
    assert mask_term["background", 1.0] == pytest.approx(mask_term["object", 1.0], rel=1e-4)
    assert mask_term["background", 0.0] < 0.1 * mask_term["object", 0.0]


def test_cells_of_one_object_are_to_be_alike() -> None:
    layers = torch.zeros(1, 8, 8, dtype=torch.long)
    layers[:, :, 4:] = 1
    side = torch.zeros(1, 2, 2, 2)  # two cells a side, each in one object
    side[0, 0, :, 0] = 1
    side[0, 1, :, 1] = 1
    alike, all_same = grouping_loss(side, layers), grouping_loss(torch.ones(1, 2, 2, 2), layers)
    assert float(alike) == pytest.approx(0.0067, abs=1e-4)  # softplus(-5) for every pair
    assert float(all_same) == pytest.approx(0.5 * (5.0067 + 0.0067), abs=1e-3)


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    options = PretrainOptions(steps=100, warmup=10, lr=1.0, decay=0.3)
    rates = [learning_rate(options, step) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:70]) == {1.0}
    assert rates[85] == pytest.approx(0.5)
    assert rates[100] == 0


class Stopped(Exception):
    pass


def train(options: PretrainOptions, path: Path | None = None, stop_at: int = 0) -> tuple[list[int], Weights]:
    """The steps that ran, and the weights; none where the run was stopped."""
    seen: list[int] = []

    def on_step(done: int, numbers: dict[str, float]) -> None:
        seen.append(done)
        if done == stop_at:
            raise Stopped

    weights: Weights = {}
    with contextlib.suppress(Stopped):
        network = pretrain(fresh_nano(0), options, checkpoint=path, on_step=on_step, num_workers=0)
        weights = network.state_dict()
    return seen, weights


def same(one: Weights, other: Weights) -> bool:
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.safetensors"
    assert train(SMALL, path, stop_at=2) == ([1, 2], {})
    assert [file.name for file in tmp_path.iterdir()] == ["pretrain_constant.safetensors"], "step 2 was not kept yet"
    assert train(SMALL, path, stop_at=3)[0] == [2, 3]
    seen, weights = train(SMALL, path)
    assert seen == [3], "from the second file, which is of the falling rate"
    assert same(weights, train(SMALL)[1])
    assert train(SMALL, path)[0] == []


def test_more_steps_continue_from_the_constant_rate(tmp_path: Path) -> None:
    path = tmp_path / "pretrain.safetensors"
    short = replace(SMALL, steps=4, decay=0.5, checkpoint_every=100)
    long = replace(short, steps=6)
    assert [is_constant(short, done) for done in range(1, 5)] == [True, True, True, False]
    assert train(short, path)[0] == [1, 2, 3, 4]
    seen, weights = train(long, path)
    assert seen == [4, 5, 6]
    assert same(weights, train(long)[1])
    assert train(replace(short, steps=5, decay=0.3), path)[0] == [5], "another decay continues too"


def test_a_checkpoint_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path, constant = tmp_path / "pretrain.safetensors", tmp_path / "pretrain_constant.safetensors"
    train(replace(SMALL, steps=4, decay=0.5), path)
    before = digest_files(tmp_path)
    assert set(before) == {path.name, constant.name}
    with pytest.raises(UsageError, match=r"pretrain_constant.*belongs to a training with other options"):
        train(replace(SMALL, lr=1e-5), path)
    with pytest.raises(UsageError, match=r"has 3 steps at the full rate; with 3 steps the rate falls from step 1 on"):
        train(SMALL, path)
    assert digest_files(tmp_path) == before


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    path, constant = tmp_path / "pretrain.safetensors", tmp_path / "pretrain_constant.safetensors"
    train(SMALL, path, stop_at=2)
    constant.write_bytes(constant.read_bytes()[:1000])
    assert train(SMALL, path, stop_at=1)[0] == [1]


def test_pretrained_weights_are_a_backbone(tmp_path: Path) -> None:
    network = fresh_nano(3)
    path = tmp_path / "sam_nano.safetensors"
    sha256 = save_nano(network, path)
    backbone = load_backbone(BackboneParams(name="sam_nano", checkpoint=str(path), sha256=sha256))
    assert backbone.is_pretrained
    assert backbone.sha256 == sha256
