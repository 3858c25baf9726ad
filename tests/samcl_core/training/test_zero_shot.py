"""Zero-shot scores: the same as picture by picture, and they follow from the seed."""

from __future__ import annotations

import statistics

import pytest
import torch

from samcl_core.backbones import Backbone, Prompts
from samcl_core.domains.points import box_of, sample_points
from samcl_core.domains.scenes import SCENES
from samcl_core.domains.synthetic import draw
from samcl_core.evaluation import mask_metrics
from samcl_core.training import resize_logits
from samcl_core.training.zero_shot import LEAVES, PROMPTS, score_zero_shot, zero_shot_names


def by_hand(backbone: Backbone, scene: str, index: int, seed: int, num_points: int) -> float:
    image, mask = draw(scene, size_px=backbone.image_size, seed=seed, split="test", index=index)
    if num_points:
        points, labels = sample_points(mask, num_points, key=str(index), seed=seed)
        prompts = Prompts(torch.from_numpy(points).float()[None], torch.from_numpy(labels)[None])
    else:
        prompts = Prompts(torch.zeros(1, 0, 2), torch.zeros(1, 0).long(), torch.tensor([box_of(mask)]))
    logits = backbone.suffix(backbone.prefix(backbone.preprocess(image)[None]), prompts).logits
    found = resize_logits(logits, backbone.image_size)[:, 0]
    return float(mask_metrics(found, torch.from_numpy(mask)[None])["iou"])


def test_scores_equal_those_of_single_pictures(backbone: Backbone) -> None:
    scores = score_zero_shot(backbone, names=["polyp"], num_images=18, seeds=(4,))
    for kind, num_points in PROMPTS.items():
        single = [by_hand(backbone, "polyp", index, 4, num_points) for index in range(18)]
        assert scores["polyp"][kind] == [pytest.approx(statistics.fmean(single), abs=1e-4)]


def test_scores_follow_from_the_seed(backbone: Backbone) -> None:
    seen: list[tuple[str, int, int]] = []
    wanted = ["natural", LEAVES]
    first = score_zero_shot(
        backbone, names=wanted, num_images=3, seeds=(0, 1), progress=lambda *said: seen.append(said)
    )
    assert first == score_zero_shot(backbone, names=wanted, num_images=3, seeds=(0, 1))
    assert list(first) == wanted
    for kinds in first.values():
        assert kinds.keys() == PROMPTS.keys()
        assert any(one != other for one, other in kinds.values())
        assert all(0 <= value <= 1 for values in kinds.values() for value in values)
    assert [said[1:] for said in seen] == [(count, 4) for count in range(1, 5)]


def test_natural_scenes_every_other_scene_and_dead_leaves_are_scored() -> None:
    assert zero_shot_names()[0] == "natural"
    assert sorted(zero_shot_names()) == sorted([*SCENES, LEAVES])
