"""Prompts drawn in training: what they must be, whatever the masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from samcl_core.adapters import build_adapter
from samcl_core.backbones import Backbone, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.config import EvaluateParams, TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.training import PrefixCache, box_prompts, cosam_prompts, train_module
from samcl_core.training.draw_prompts import noisy_masks
from samcl_core.training.draws import stream_of

STEPS = range(60)


def blobs(count: int = 4, size: int = 64) -> torch.Tensor:
    """Ellipses of many sizes, some cut by the border."""
    draw = np.random.default_rng(3)
    rows, columns = np.mgrid[:size, :size]
    masks = []
    for _ in range(count):
        y, x = draw.uniform(0, size, 2)
        a, b = draw.uniform(size / 10, size / 3, 2)
        masks.append(((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1)
    return torch.from_numpy(np.stack(masks).astype(np.uint8))


def kind_of(prompts: Prompts) -> str:
    given = {"box": prompts.boxes is not None, "mask": prompts.masks is not None, "points": prompts.labels.numel() > 0}
    (kind,) = [name for name, is_given in given.items() if is_given]
    return kind


def drawn(masks: torch.Tensor, kind: str) -> list[Prompts]:
    every = [cosam_prompts(masks, 8, seed=1, step=step) for step in STEPS]
    return [prompts for prompts in every if kind_of(prompts) == kind]


def test_each_kind_is_drawn_about_equally_often() -> None:
    kinds = Counter(kind_of(cosam_prompts(blobs(1, 32), 8, seed=0, step=step)) for step in range(600))
    assert set(kinds) == {"box", "points", "mask"}
    assert all(150 < times < 250 for times in kinds.values())


def test_seed_and_step_alone_decide() -> None:
    masks = blobs()
    for step in STEPS:
        first, again = (cosam_prompts(masks, 8, seed=4, step=step) for _ in range(2))
        for name in ("points", "labels", "boxes", "masks"):
            left, right = getattr(first, name), getattr(again, name)
            assert (left is None and right is None) or torch.equal(left, right)
    kinds = [[kind_of(cosam_prompts(masks, 8, seed=seed, step=step)) for step in STEPS] for seed in (4, 5)]
    assert kinds[0] != kinds[1]


def test_points_are_ten_different_pixels_of_the_mask() -> None:
    masks = blobs()
    for prompts in drawn(masks, "points"):
        assert prompts.points.shape == (4, 10, 2) and prompts.labels.eq(1).all()
        pixels = (prompts.points * 64 / 1024).floor().long()
        for mask, places in zip(masks, pixels, strict=True):
            assert mask[places[:, 1], places[:, 0]].all()
            assert len({tuple(place) for place in places.tolist()}) == 10


def test_boxes_are_tight() -> None:
    masks = blobs()
    for prompts in drawn(masks, "box"):
        assert prompts.boxes is not None
        for mask, box in zip(masks, (prompts.boxes * 64 / 1024).round().long().tolist(), strict=True):
            x0, y0, x1, y1 = box
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_masks_are_noisy_along_the_outline_alone() -> None:
    masks = blobs(8, 256)
    noisy = noisy_masks(masks, 256, stream_of("test"))
    assert noisy.shape == (8, 1, 256, 256) and set(noisy.unique().tolist()) == {0.0, 255.0}
    square = np.ones((3, 3), bool)
    for mask, prompt in zip(masks.numpy().astype(bool), noisy[:, 0].numpy() > 0, strict=True):
        # A pixel of the coarse grid is 8 pixels, and the interpolation reaches one further.
        outline = binary_dilation(mask, square, 17) & ~binary_erosion(mask, square, 17, border_value=1)
        assert np.array_equal(mask[~outline], prompt[~outline])
        assert 0 < (mask ^ prompt).sum() < outline.sum()


def test_small_and_empty_masks_fall_back() -> None:
    masks = blobs()
    masks[1] = 0
    masks[1, 5, 5:14] = 1
    assert not drawn(masks, "points") and drawn(masks, "box") and drawn(masks, "mask")
    masks[1, 5, 14] = 1
    assert drawn(masks, "points")
    masks[1] = 0
    assert not drawn(masks, "points")
    for prompts in drawn(masks, "box"):
        assert prompts.boxes is not None and prompts.boxes[1].tolist() == [0, 0, 1024, 1024]
    for prompts in drawn(masks, "mask"):
        assert prompts.masks is not None and not prompts.masks[1].any() and prompts.masks[0].any()


@pytest.mark.parametrize("make", [tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
def test_every_backbone_learns_from_them_the_same_way_twice(
    make: Callable[[], Backbone], samples: list[Sample]
) -> None:
    backbone = make()
    adapter = build_adapter("augmodule", backbone.site, rank=4)
    options = TrainParams(epochs=4, batch_size=4, lr=0.01, prompts="cosam", loss="cosam", schedule="step")
    runs = [
        train_module(backbone, adapter, PrefixCache(None, backbone), given, options, seed=0, val=samples[:2])
        for given in (samples, samples[::-1])
    ]
    assert all(torch.equal(value, runs[1].tensors[name]) for name, value in runs[0].tensors.items())
    assert {"bce", "dice", "total", "val_iou"} <= set(runs[0].curve[0])


def test_evaluation_with_the_box_sees_no_points(backbone: Backbone, samples: list[Sample]) -> None:
    prompts = box_prompts(samples[:3])
    assert prompts.points.shape == (3, 0, 2) and prompts.boxes is not None
    rows, columns = np.nonzero(np.asarray(Image.open(samples[0].mask)) > 127)
    edges = np.array([columns.min() / 80, rows.min() / 64, (columns.max() + 1) / 80, (rows.max() + 1) / 64]) * 1024
    np.testing.assert_allclose(prompts.boxes[0], edges)
    cache = PrefixCache(None, backbone)
    params = EvaluateParams(prompts="box", resolution="original")
    found = score_samples(Segmenter(backbone), cache, samples, params)
    elsewhere = [replace(sample, points=((1.0, 1.0),), labels=(1,)) for sample in samples]
    assert found.equals(score_samples(Segmenter(backbone), cache, elsewhere, params))
    assert not found.equals(score_samples(Segmenter(backbone), cache, samples, EvaluateParams(resolution="original")))
