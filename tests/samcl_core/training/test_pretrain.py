"""Pretraining: scenes follow from seed and step, prompts lie where they should, a killed run continues to the byte."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samcl_core.backbones import load_backbone, save_nano
from samcl_core.config import BackboneParams
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

SMALL = PretrainOptions(steps=2, batch_size=2, objects=2, warmup=1, checkpoint_every=1)


def test_scenes_follow_from_the_seed() -> None:
    one, same, other = (draw_leaves(2, 64, torch.Generator().manual_seed(seed), num_layers=4) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.layers, same.layers)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (2, 3, 64, 64)
    assert 0 <= float(one.images.min()) < float(one.images.max()) <= 255
    assert set(one.layers.unique().tolist()) <= set(range(5))


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


def test_a_stopped_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    def run(options: PretrainOptions, stop_at: int) -> list[int]:
        seen: list[int] = []

        def on_step(done: int, numbers: dict[str, float]) -> None:
            seen.append(done)
            if done == stop_at:
                raise Stopped

        with contextlib.suppress(Stopped):
            states.append(
                pretrain(fresh_nano(0), options, checkpoint=path, on_step=on_step, num_workers=0).state_dict()
            )
        return seen

    states = [pretrain(fresh_nano(0), SMALL, num_workers=0).state_dict()]
    path = tmp_path / "pretrain.safetensors"
    assert run(SMALL, stop_at=2) == [1, 2]
    assert run(SMALL, stop_at=0) == [2], "the last step was not checkpointed yet"
    whole, again = states
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert run(replace(SMALL, lr=1e-5), stop_at=1) == [1], "a checkpoint of other options is ignored"


def test_pretrained_weights_are_a_backbone(tmp_path: Path) -> None:
    network = fresh_nano(3)
    path = tmp_path / "sam_nano.safetensors"
    sha256 = save_nano(network, path)
    backbone = load_backbone(BackboneParams(name="sam_nano", checkpoint=str(path), sha256=sha256))
    assert backbone.is_pretrained
    assert backbone.sha256 == sha256
