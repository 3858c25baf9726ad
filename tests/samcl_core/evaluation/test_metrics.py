"""Mask scores: hand-counted masks, the recorded numbers of the published code, and the published boundary."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from samcl_core.evaluation.metrics import binarize, boundary, boundary_iou, f1, iou, mae, mask_metrics

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "metrics.npz")
CASES = [name for name in GOLDEN.files if not name.endswith("_tp_fp_fn_tn") and not name.startswith("batch")]
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}
"""Ten times tighter than the recorded numbers ask for."""


def recorded_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, 96, 80) and truth (1, 96, 80) bool that the numbers were recorded for."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"metric.{name}".encode())))
    shape = (1, 96, 80)
    logits = (generator.standard_normal(shape) * 2.0).astype(np.float32)
    truth = (generator.random(shape) < 0.35).astype(np.int64)
    if name == "good":
        logits = ((truth * 2 - 1) * 2.0 + generator.standard_normal(shape)).astype(np.float32)
    elif name == "perfect":
        logits = np.where(truth == 1, 4.0, -4.0).astype(np.float32)
    constant = {"empty_pred": -5.0, "both_empty": -5.0, "all_ones_pred": 5.0, "both_all_ones": 5.0, "zero_logit": 0.0}
    constant["logit_0.3"] = 0.3
    if name in constant:
        logits[:] = constant[name]
    if name in ("empty_gt", "both_empty"):
        truth[:] = 0
    if name == "both_all_ones":
        truth[:] = 1
    return torch.from_numpy(logits), torch.from_numpy(truth).bool()


def masks(*rows: str) -> torch.Tensor:
    """(1, H, W) bool from rows of ``#`` and ``.``."""
    return torch.tensor([[[pixel == "#" for pixel in row] for row in rows]])


def random_masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blobs of many sizes, touching the border."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros((count, height, width), np.uint8)
    for mask in drawn:
        for _ in range(int(generator.integers(1, 5))):
            centre = (int(generator.integers(0, width)), int(generator.integers(0, height)))
            axes = (int(generator.integers(1, width // 2)), int(generator.integers(1, height // 2)))
            cv2.ellipse(mask, centre, axes, float(generator.integers(0, 180)), 0, 360, 1, -1)
        mask[generator.random(mask.shape) < 0.002] ^= 1
    return torch.from_numpy(drawn).bool()


def published_boundary(mask: np.ndarray, frac: float) -> np.ndarray:
    """``mask_to_boundary`` of the authors of Boundary IoU."""
    height, width = mask.shape
    iterations = max(1, round(frac * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=iterations)
    return (mask.astype(np.uint8) - eroded[1 : height + 1, 1 : width + 1]).astype(bool)


# Smoke, shapes, exceptions --------------------------------------------------------------------------------------------


def test_shapes_dtypes_and_names() -> None:
    scores = mask_metrics(random_masks(3, 20, 30), random_masks(3, 20, 30, seed=1))
    assert list(scores) == ["iou", "f1", "mae", "boundary_iou"]
    assert all(score.shape == (3,) and score.dtype == torch.float64 for score in scores.values())
    assert all(bool(((score >= 0) & (score <= 1)).all()) for score in scores.values())


def test_an_empty_batch_has_no_scores() -> None:
    nothing = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert all(score.shape == (0,) for score in mask_metrics(nothing, nothing).values())


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 5, 4), (4, 5), (1, 1, 4, 5)])
def test_wrong_shapes_name_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"masks are \(1, 4, 5\) and truth \({', '.join(map(str, shape))}\)"):
        mask_metrics(torch.zeros(1, 4, 5, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool))


def test_wrong_types_are_refused() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"truth is torch.float32, expected bool"):
        iou(truth, truth.float())
    with pytest.raises(TypeError, match=r"masks are torch.uint8, expected bool or floating"):
        iou(truth.to(torch.uint8), truth)
    with pytest.raises(ValueError, match=r"\(1, 0, 4\)"):
        mae(truth[:, :0], truth[:, :0])


# Numbers --------------------------------------------------------------------------------------------------------------


def test_hand_counted() -> None:
    mask, truth = masks("##..", "##..", "...."), masks(".##.", ".##.", "....")
    assert iou(mask, truth).tolist() == [2 / 6]
    assert f1(mask, truth).tolist() == [4 / 8]
    assert mae(mask, truth).tolist() == [4 / 12]


def test_empty_masks() -> None:
    nothing, something = torch.zeros(1, 8, 8, dtype=torch.bool), torch.ones(1, 8, 8, dtype=torch.bool)
    assert {name: score.item() for name, score in mask_metrics(nothing, nothing).items()} == {
        "iou": 1.0,
        "f1": 1.0,
        "mae": 0.0,
        "boundary_iou": 1.0,
    }
    for mask, truth in ((nothing, something), (something, nothing)):
        assert [score.item() for score in mask_metrics(mask, truth).values()] == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_logit_of_zero_is_foreground(dtype: torch.dtype) -> None:
    logits = torch.tensor([-1.0, -1e-3, -0.0, 0.0, 0.3], dtype=dtype)
    assert binarize(logits).tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_published_code(case: str, parity: Any) -> None:
    logits, truth = recorded_case(case)
    counts = GOLDEN[f"{case}_tp_fp_fn_tn"]
    predicted = binarize(logits)
    pixels = [int((predicted & truth).sum()), int((predicted & ~truth).sum())]
    parity("metrics: true and false positives", "both", pixels, counts[:2])
    found = [score(logits, truth).item() for score in (iou, f1, mae)]
    parity("metrics: IoU, F1, MAE", "both", found, GOLDEN[case][:3], **TOLERANCE)


def test_every_recorded_case_is_compared() -> None:
    assert len(CASES) == 10


def test_a_batch_is_its_images_one_by_one() -> None:
    (good, good_truth), (rand, rand_truth) = recorded_case("good"), recorded_case("random")
    logits, truth = torch.cat([good, rand]), torch.cat([good_truth, rand_truth])
    found = [score(logits, truth).mean().item() for score in (iou, f1, mae)]
    np.testing.assert_allclose(found, GOLDEN["batch_good_random"], **TOLERANCE)
    mask, other = random_masks(6, 40, 56), random_masks(6, 40, 56, seed=1)
    whole = mask_metrics(mask, other)
    for row in range(6):
        alone = mask_metrics(mask[row : row + 1], other[row : row + 1])
        assert all(torch.equal(alone[name][0], whole[name][row]) for name in whole)


# Boundary -------------------------------------------------------------------------------------------------------------


def test_boundary_of_a_square_by_hand() -> None:
    square = masks(".......", ".#####.", ".#####.", ".#####.", ".#####.", ".#####.", ".......")
    band = masks(".......", ".#####.", ".#...#.", ".#...#.", ".#...#.", ".#####.", ".......")
    assert torch.equal(boundary(square), band)


def test_outside_the_image_is_background() -> None:
    band = masks("####", "#..#", "#..#", "####")
    assert torch.equal(boundary(torch.ones(1, 4, 4, dtype=torch.bool)), band)


@pytest.mark.parametrize("frac", [0.001, 0.02, 0.1, 0.4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 3), (64, 64), (96, 80), (61, 237)])
def test_boundary_equals_the_published_function(height: int, width: int, frac: float) -> None:
    drawn = random_masks(4, max(height, 4), max(width, 4), seed=height * width)[:, :height, :width]
    expected = np.stack([published_boundary(mask.numpy(), frac) for mask in drawn])
    assert np.array_equal(boundary(drawn, frac).numpy(), expected)


def test_boundary_equals_the_published_function_at_full_size() -> None:
    drawn = random_masks(1, 1024, 1024)
    assert np.array_equal(boundary(drawn)[0].numpy(), published_boundary(drawn[0].numpy(), 0.02))


def test_boundary_iou_is_the_iou_of_the_published_boundaries() -> None:
    mask, truth = random_masks(5, 96, 80), random_masks(5, 96, 80, seed=1)
    bands = [[published_boundary(m.numpy(), 0.02) for m in both] for both in zip(mask, truth, strict=True)]
    expected = [(a & b).sum() / (a | b).sum() for a, b in bands]
    np.testing.assert_allclose(boundary_iou(mask, truth).numpy(), expected, rtol=1e-12)


def test_boundary_iou_sees_what_iou_hardly_sees() -> None:
    size = 200
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = ((x - 100) ** 2 + (y - 100) ** 2).sqrt()
    mask, truth = (radius < 90)[None], (radius < 86)[None]
    assert iou(mask, truth).item() > 0.9 > 0.5 > boundary_iou(mask, truth).item()


def test_inputs_are_not_changed() -> None:
    mask, truth = random_masks(2, 30, 30), random_masks(2, 30, 30, seed=1)
    before = mask.clone(), truth.clone()
    mask_metrics(mask, truth)
    assert torch.equal(mask, before[0]) and torch.equal(truth, before[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_numbers_on_cuda() -> None:
    mask, truth = random_masks(8, 256, 200), random_masks(8, 256, 200, seed=1)
    here, there = mask_metrics(mask, truth), mask_metrics(mask.cuda(), truth.cuda())
    assert all(torch.equal(here[name], there[name].cpu()) for name in here)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 31, 33), (1, 64, 128), (5, 128, 1024)])
def test_pixels_are_counted_whatever_their_number_and_place_in_memory(shape: tuple[int, int, int]) -> None:
    masks = random_masks(shape[0] + 1, *shape[1:])[1:]  # begins anywhere in memory
    truth = torch.ones(shape, dtype=torch.bool)
    expected = masks.numpy().sum((1, 2)) / (shape[1] * shape[2])
    assert iou(masks, truth).tolist() == expected.tolist()
    across = masks.transpose(1, 2)
    assert iou(across, truth.transpose(1, 2)).tolist() == expected.tolist()


def test_a_batch_scored_in_parts_is_the_batch_scored_at_once() -> None:
    masks, truth = random_masks(5, 700, 1000), random_masks(5, 700, 1000, seed=1)
    whole = mask_metrics(masks, truth)
    for row in range(5):
        alone = mask_metrics(masks[row : row + 1], truth[row : row + 1])
        assert all(whole[name][row] == alone[name][0] for name in whole)
