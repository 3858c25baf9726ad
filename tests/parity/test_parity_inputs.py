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

HEAT_ATOL = 1e-5
PIXEL_ATOL = 1e-6
REFERENCE = {"window_heatmap": "shrink", "neck_axes": "transposed", "point_labels": "ignored"}
CROPS = ((0, 0), (500, 500))


def test_heatmaps(golden) -> None:
    arrays = golden("heatmap")
    cases = [name.removeprefix("points_") for name in arrays if name.startswith("points_")]
    assert len(cases) == 17
    for case in cases:
        points = torch.from_numpy(arrays[f"points_{case}"])
        for label in (0, 1):
            labels = torch.full(points.shape[:2], label)
            heat = render_heatmap(points, labels, signed=False)
            expected = arrays[f"heat_{case}"][:, 0].swapaxes(1, 2)
            np.testing.assert_allclose(heat.numpy(), expected, rtol=0, atol=HEAT_ATOL, err_msg=case)
        np.testing.assert_array_equal(
            render_heatmap(points, torch.ones(points.shape[:2]), signed=True).numpy(),
            render_heatmap(points, torch.ones(points.shape[:2]), signed=False).numpy(),
        )


def test_blur_is_the_fixed_table(golden) -> None:
    heat = render_heatmap(torch.tensor([[[512.0, 512.0]]]), torch.ones(1, 1), signed=True)
    kernel = heat[0, 28:37, 28:37].double().numpy() / 255
    np.testing.assert_allclose(kernel, golden("heatmap")["kernel_9x9_float64"] / 255, rtol=0, atol=1e-7)
    assert float(heat.max()) == pytest.approx(255 * (60 / 256) ** 2, abs=1e-5)


@pytest.fixture(scope="module")
def sam_1024() -> SamBackbone:
    """A 1024 px SAM that costs nothing: preprocessing depends on the input size alone."""
    config = NanoConfig(1024, 64, 16, 2, 2, 0, (0, 1), 16, 2, 32, 4)
    return SamBackbone("sam", build_nano(config), sha256="", is_pretrained=False)


def test_preprocess_sam(golden, recipe, sam_1024) -> None:
    _check_pixels(golden("preprocess"), "sam1norm", sam_1024.preprocess(recipe.synthetic_image()).numpy())


def test_preprocess_sam2(golden, recipe) -> None:
    backbone: Sam2Backbone = tiny_sam2_backbone()
    backbone.image_size = 1024
    _check_pixels(golden("preprocess"), "sam2", backbone.preprocess(recipe.synthetic_image()).numpy())


def _check_pixels(arrays, family: str, pixels: np.ndarray) -> None:
    for crop, (y, x) in zip(arrays[f"synthetic_{family}_crop"], CROPS, strict=True):
        np.testing.assert_allclose(pixels[:, y : y + 16, x : x + 16], crop, rtol=0, atol=PIXEL_ATOL)
    channels = pixels.reshape(3, -1).astype(np.float64)
    stats = np.stack([channels.mean(1), channels.std(1, ddof=1), channels.min(1), channels.max(1)], axis=1)
    np.testing.assert_allclose(stats, arrays[f"synthetic_{family}_stats"], rtol=0, atol=1e-5)


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
def test_heat_features_of_the_recipe_module(family: str, golden, recipe, synthetic_prompts: Prompts) -> None:
    dim, neck = {"sam1": (768, 256), "sam2": (384, None)}[family]
    blocks = {"sam1": (7, 8, 9, 10, 11), "sam2": (6, 7, 8, 9)}[family]
    windows = {"sam1": (14, 0, 14, 14, 0), "sam2": (14, 0, 14, 0)}[family]
    adapter = build_adapter("augmodule", AdapterSite(dim, neck, 64, blocks, windows), **REFERENCE)
    tensors = {name: torch.from_numpy(value) for name, value in recipe.augmodule_tensors(family).items()}
    arrays = golden(f"{family}_forward")
    hooks = adapter.hooks(tensors, synthetic_prompts)
    expected = arrays["block_recipe_heat_norm_out"].clip(0).swapaxes(1, 2)
    np.testing.assert_allclose(hooks._features[:, ::4, ::4].numpy(), expected, rtol=1e-5, atol=2e-5)
    shrunk = hooks._heat(14).reshape(1, 14, 14, 10)
    np.testing.assert_allclose(
        shrunk.numpy(), arrays[f"block_recipe_block{blocks[0]:02d}_heat_input"], rtol=1e-5, atol=2e-5
    )
    if neck is not None:
        added = hooks.neck_input(torch.zeros(1, 64, 64, dim))[:, ::4, ::4, :8]
        np.testing.assert_allclose(added.numpy(), arrays["block_recipe_upward_ch8"], rtol=1e-5, atol=2e-5)
        added = hooks.neck_output(torch.zeros(1, neck, 64, 64))[:, :8, ::4, ::4].permute(0, 2, 3, 1)
        np.testing.assert_allclose(added.numpy(), arrays["block_recipe_upward__ch8"], rtol=1e-5, atol=2e-5)
