from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from samcl_core.domains.layout import Sample
from samcl_core.errors import PromptError
from samcl_core.training.data import MaskCache, masks_of, prompts_of


def test_prompts_are_padded_to_the_longest(samples: list[Sample]) -> None:
    first = replace(samples[0], points=((1.0, 2.0), (3.0, 4.0)), labels=(1, 0))
    second = replace(samples[1], points=((5.0, 6.0),), labels=(1,))
    prompts = prompts_of([first, second])
    assert prompts.points.tolist() == [[[1, 2], [3, 4]], [[5, 6], [0, 0]]]
    assert prompts.labels.tolist() == [[1, 0], [1, -1]]
    assert (prompts.points.dtype, prompts.labels.dtype) == (torch.float32, torch.int64)
    assert prompts.boxes is None


def test_boxes_alone_are_prompts(samples: list[Sample]) -> None:
    boxed = [replace(sample, points=(), labels=(), box=(1.0, 2.0, 30.0, 40.0)) for sample in samples[:2]]
    prompts = prompts_of(boxed)
    assert prompts.points.shape == (2, 0, 2)
    assert prompts.boxes is not None and prompts.boxes.tolist() == [[1, 2, 30, 40]] * 2


def test_missing_and_mixed_prompts_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(PromptError, match=r"train/images/1\.png has no prompt"):
        prompts_of([samples[0], replace(samples[1], points=(), labels=())])
    with pytest.raises(PromptError, match=r"train/images/1\.png has a box, unlike train/images/0\.png"):
        prompts_of([samples[0], replace(samples[1], box=(0.0, 0.0, 1.0, 1.0))])


@pytest.mark.parametrize("size_px", [64, 50, 1024])
def test_masks_are_resized_like_pillow(samples: list[Sample], size_px: int) -> None:
    masks = masks_of(samples[:2], size_px)
    assert masks.shape == (2, size_px, size_px) and masks.dtype == torch.float32
    for mask, sample in zip(masks, samples, strict=False):
        expected = np.asarray(Image.open(sample.mask).resize((size_px, size_px), Image.Resampling.NEAREST)) / 255
        assert np.array_equal(mask.numpy(), expected)


def test_mask_threshold_is_an_option(samples: list[Sample]) -> None:
    Image.fromarray(np.full((64, 80), 200, np.uint8)).save(samples[0].mask)
    assert masks_of(samples[:1], 64).min() == 1
    assert masks_of(samples[:1], 64, threshold=255).max() == 0


def test_masks_are_decoded_once_and_bounded(samples: list[Sample]) -> None:
    cache = MaskCache(64)
    first = cache.get(samples[:2])
    assert first.dtype == torch.uint8
    for sample in samples[:2]:
        sample.mask.unlink()
    assert torch.equal(cache.get(samples[:2]), first)
    bounded = MaskCache(64, max_gb=2 * 64 * 64 / 8 / 2**30)
    bounded.get(samples[2:])
    assert len(bounded) == 2
