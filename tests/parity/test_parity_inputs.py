"""What goes into the network equals the published code: heat-maps and pixels."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.adapters.augmodule import render_heatmap
from samcl_core.backbones import AdapterSite, Prompts, SamBackbone
from samcl_core.backbones.frozen import squash
from samcl_core.backbones.nano import NanoConfig, build_nano
from samcl_core.backbones.sam2 import Sam2Backbone, tiny_sam2_backbone
from samcl_core.config import parse_params
from samcl_core.domains import load_mask

HEAT_ATOL = 1e-5
PIXEL_ATOL = 1e-6
REFERENCE = {"window_heatmap": "shrink", "neck_axes": "transposed", "point_labels": "ignored"}
CROPS = ((0, 0), (500, 500))


def test_heatmaps(golden, parity) -> None:
    arrays = golden("heatmap")
    cases = [name.removeprefix("points_") for name in arrays if name.startswith("points_")]
    assert len(cases) == 17
    for case in cases:
        points = torch.from_numpy(arrays[f"points_{case}"])
        for label in (0, 1):
            labels = torch.full(points.shape[:2], label)
            heat = render_heatmap(points, labels, signed=False)
            expected = arrays[f"heat_{case}"][:, 0].swapaxes(1, 2)
            parity("heat-map", "both", heat.numpy(), expected, atol=HEAT_ATOL)
        np.testing.assert_array_equal(
            render_heatmap(points, torch.ones(points.shape[:2]), signed=True).numpy(),
            render_heatmap(points, torch.ones(points.shape[:2]), signed=False).numpy(),
        )


def test_blur_is_the_fixed_table(golden, parity) -> None:
    heat = render_heatmap(torch.tensor([[[512.0, 512.0]]]), torch.ones(1, 1), signed=True)
    kernel = heat[0, 28:37, 28:37].double().numpy() / 255
    parity("heat-map: 9 x 9 kernel", "both", kernel, golden("heatmap")["kernel_9x9_float64"] / 255, atol=1e-7)
    assert float(heat.max()) == pytest.approx(255 * (60 / 256) ** 2, abs=1e-5)


@pytest.fixture(scope="module")
def sam_1024() -> SamBackbone:
    """A 1024 px SAM that costs nothing: preprocessing depends on the input size alone."""
    config = NanoConfig(1024, 64, 16, 2, 2, 0, (0, 1), 16, 2, 32, 4)
    return SamBackbone("sam", build_nano(config), sha256="", is_pretrained=False)


def test_preprocess_sam(golden, recipe, sam_1024, parity) -> None:
    pixels = sam_1024.preprocess(recipe.synthetic_image()).numpy()
    _check_pixels(golden("preprocess"), "sam1norm", pixels, parity, "SAM ViT-B")


def test_preprocess_sam2(golden, recipe, parity) -> None:
    backbone: Sam2Backbone = tiny_sam2_backbone()
    backbone.image_size = 1024
    pixels = backbone.preprocess(recipe.synthetic_image()).numpy()
    _check_pixels(golden("preprocess"), "sam2", pixels, parity, "SAM 2.1 tiny")


def _check_pixels(arrays, family: str, pixels: np.ndarray, parity, label: str) -> None:
    for crop, (y, x) in zip(arrays[f"synthetic_{family}_crop"], CROPS, strict=True):
        parity("preprocessing: pixels", label, pixels[:, y : y + 16, x : x + 16], crop, atol=PIXEL_ATOL)
    channels = pixels.reshape(3, -1).astype(np.float64)
    stats = np.stack([channels.mean(1), channels.std(1, ddof=1), channels.min(1), channels.max(1)], axis=1)
    parity("preprocessing: mean, deviation, range", label, stats, arrays[f"synthetic_{family}_stats"], atol=1e-5)


def test_masks_of_the_published_threshold(golden, recipe, parity, tmp_path) -> None:
    """Grey mask pixels, as JPEG leaves them, are background for the published code: only 255 counts."""
    from PIL import Image

    path = tmp_path / "mask.png"
    mask = recipe.synthetic_mask(1024).astype(bool)
    grey = np.where(mask, 255, np.where(np.random.default_rng(0).random(mask.shape) < 0.5, 254, 0))
    Image.fromarray(grey.astype(np.uint8)).save(path)
    threshold = parse_params({"profile": "reference"}).ingest.mask_threshold
    assert threshold is not None
    packed = golden("preprocess")["synthetic_mask_packed"]
    parity.masks("preprocessing: mask of the ground truth", "both", load_mask(path, threshold), packed, at_most=0)
    assert (load_mask(path) != mask).mean() > 0.1, "the default threshold counts grey as foreground"


def test_squash_leaves_a_picture_of_the_right_size_alone(recipe) -> None:
    same = squash(recipe.synthetic_image(), 1024)
    expected = "1b2dd0b9e82a6f2dbe54808ef9464a10818dd9fcac8820829516281f2158ce2a"
    assert hashlib.sha256(same.tobytes()).hexdigest() == expected


@pytest.mark.parametrize("size", [64, 128, 1024])
def test_squash_equals_torchvision(size: int) -> None:
    from PIL import Image
    from torchvision.transforms import Resize

    image = np.random.default_rng(3).integers(0, 256, (97, 211, 3), dtype=np.uint8)
    expected = np.asarray(Resize((size, size))(Image.fromarray(image)))
    np.testing.assert_array_equal(squash(image, size), expected)


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_heat_features_of_the_recipe_module(family: str, golden, recipe, synthetic_prompts: Prompts, parity) -> None:
    label = {"sam1": "SAM ViT-B", "sam2": "SAM 2.1 tiny"}[family]
    dim, neck = {"sam1": (768, 256), "sam2": (384, None)}[family]
    blocks = {"sam1": (7, 8, 9, 10, 11), "sam2": (6, 7, 8, 9)}[family]
    windows = {"sam1": (14, 0, 14, 14, 0), "sam2": (14, 0, 14, 0)}[family]
    adapter = build_adapter("augmodule", AdapterSite(dim, neck, 64, blocks, windows), **REFERENCE)
    tensors = {name: torch.from_numpy(value) for name, value in recipe.augmodule_tensors(family).items()}
    arrays = golden(f"{family}_forward")
    hooks = adapter.hooks(tensors, synthetic_prompts)
    expected = arrays["block_recipe_heat_norm_out"].clip(0).swapaxes(1, 2)
    tolerance = {"rtol": 1e-5, "atol": 2e-5}
    parity("AugModule: heat features", label, hooks._features[:, ::4, ::4].numpy(), expected, **tolerance)
    shrunk = hooks._heat(14).reshape(1, 14, 14, 10)
    expected = arrays[f"block_recipe_block{blocks[0]:02d}_heat_input"]
    parity("AugModule: heat features in a window", label, shrunk.numpy(), expected, **tolerance)
    if neck is not None:
        added = hooks.neck_input(torch.zeros(1, 64, 64, dim))[:, ::4, ::4, :8]
        parity("AugModule: added at the neck", label, added.numpy(), arrays["block_recipe_upward_ch8"], **tolerance)
        added = hooks.neck_output(torch.zeros(1, neck, 64, 64))[:, :8, ::4, ::4].permute(0, 2, 3, 1)
        parity("AugModule: added at the neck", label, added.numpy(), arrays["block_recipe_upward__ch8"], **tolerance)
