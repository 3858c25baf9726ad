"""Scores at the images' own sizes, and the boundary against scipy's erosion and distance transform."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_cdt

from samcl_core.backbones import tiny_backbone
from samcl_core.config import EvaluateParams
from samcl_core.domains.layout import Sample
from samcl_core.evaluation.metrics import boundary, boundary_iou
from samcl_core.files import sha256_file
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.training import PrefixCache, box_prompts, prompts_of

SIZES = [(63, 81), (64, 64), (1, 37), (37, 1), (101, 55), (511, 333)]


def touching(height: int, width: int, seed: int) -> np.ndarray:
    """Rectangles and discs, most of them cut by the border of the image."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows < height // 3) & (columns >= width // 2)
    for _ in range(3):
        y, x = draw.uniform(0, height), draw.uniform(0, width)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 < (draw.uniform(0.05, 0.3) * max(height, width)) ** 2
    return mask


def band_by_erosion(mask: np.ndarray, frac: float) -> np.ndarray:
    """Mask minus ``d`` erosions by a 3 x 3 square, outside of the image is background (Boundary IoU, CVPR 2021)."""
    distance = max(1, round(frac * math.hypot(*mask.shape)))
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def band_by_distance(mask: np.ndarray, frac: float) -> np.ndarray:
    """The same as a distance: pixels of the mask at most ``d`` king's moves away from the background."""
    distance = max(1, round(frac * math.hypot(*mask.shape)))
    away = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    return mask & (away <= distance)


def share(left: np.ndarray, right: np.ndarray) -> float:
    union = (left | right).sum()
    return float((left & right).sum() / union) if union else 1.0


@pytest.mark.parametrize("frac", [0.005, 0.02, 0.15])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_band_is_scipy_s_in_two_ways(height: int, width: int, frac: float) -> None:
    masks = [touching(height, width, seed) for seed in range(4)]
    masks += [np.ones((height, width), bool), np.zeros((height, width), bool)]
    found = boundary(torch.from_numpy(np.stack(masks)), frac).numpy()
    for mask, band in zip(masks, found, strict=True):
        expected = band_by_erosion(mask, frac)
        assert np.array_equal(expected, band_by_distance(mask, frac)), "the two references differ"
        assert np.array_equal(band, expected)
    scores = boundary_iou(torch.from_numpy(np.stack(masks[1:])), torch.from_numpy(np.stack(masks[:-1])), frac)
    expected = [share(*(band_by_erosion(m, frac) for m in both)) for both in zip(masks[1:], masks, strict=False)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def sample_of(folder: Path, height: int, width: int, seed: int) -> Sample:
    mask = touching(height, width, seed)
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    paths = folder / f"{seed}_image.png", folder / f"{seed}_mask.png"
    for path, pixels in zip(paths, (noise + mask[..., None] * 150, mask * 255), strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    row, column = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
    point = (float(column + 0.5) * 1024 / width, float(row + 0.5) * 1024 / height)
    digests = (sha256_file(path) for path in paths)
    return Sample(f"test/images/{seed}.png", *paths, *digests, width, height, (point,), (1,), None)


@pytest.mark.parametrize("prompts", ["stored", "box"])
def test_scores_at_the_original_size_are_those_of_each_image(tmp_path: Path, prompts: str) -> None:
    """Logits are enlarged to each image's own size before they are cut; nothing of that is shared with the scorer."""
    backbone = tiny_backbone()
    samples = [
        sample_of(tmp_path, height, width, seed) for seed, (height, width) in enumerate([(63, 81), (64, 64), (101, 55)])
    ]
    cache = PrefixCache(None, backbone)
    params = EvaluateParams.model_validate({"resolution": "original", "prompts": prompts})
    frame = score_samples(Segmenter(backbone), cache, samples, params)
    given = box_prompts(samples) if prompts == "box" else prompts_of(samples)
    logits = backbone.suffix(cache.get(samples), given).logits
    assert list(frame["id"]) == [sample.id for sample in samples]
    for row, sample in enumerate(samples):
        size = (sample.height, sample.width)
        large = torch.nn.functional.interpolate(logits[row : row + 1], size, mode="bilinear", align_corners=False)
        found, truth = large[0, 0].numpy() >= 0, np.asarray(Image.open(sample.mask)) > 127
        assert 0 < found.sum() < found.size, "the untrained answer tells nothing"
        assert frame["iou"][row] == pytest.approx(share(found, truth), abs=1e-12)
        bands = band_by_erosion(found, 0.02), band_by_erosion(truth, 0.02)
        assert frame["boundary_iou"][row] == pytest.approx(share(*bands), abs=1e-12)
