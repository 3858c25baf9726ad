"""A SAM 2.1 split into prefix and suffix is still the official image path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samcl_core.backbones import Prompts, Sam2Backbone, tiny_sam2_backbone
from samcl_core.backbones.sam2 import SAM2_NAMES, build_sam2

ATOL = 1e-5
PROMPTS = Prompts(
    torch.tensor([[[100.0, 200.0], [900.0, 30.0]], [[512.0, 512.0], [0.0, 1023.0]]]), torch.tensor([[1, 0], [1, -1]])
)
BOXES = torch.tensor([[10.0, 20.0, 500.0, 600.0], [0.0, 0.0, 1023.0, 1023.0]])


@pytest.fixture(scope="module")
def backbone() -> Sam2Backbone:
    return tiny_sam2_backbone()


@pytest.fixture(scope="module")
def pixels(backbone: Sam2Backbone) -> torch.Tensor:
    draw = np.random.default_rng(6)
    return torch.stack([backbone.preprocess(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)])


def official(model, pixels: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``SAM2ImagePredictor`` runs, image by image."""
    logits, ious = [], []
    factor = model.image_size / 1024
    for row, image in enumerate(pixels):
        used = prompts.labels[row] != -1
        points, labels = prompts.points[row : row + 1, used] * factor, prompts.labels[row : row + 1, used]
        if prompts.boxes is not None:
            points = torch.cat([prompts.boxes[row].reshape(1, 2, 2) * factor, points], dim=1)
            labels = torch.cat([torch.tensor([[2, 3]]), labels], dim=1)
        with torch.no_grad():
            _, features, _, sizes = model._prepare_backbone_features(model.forward_image(image[None]))
            features[-1] = features[-1] + model.no_mem_embed
            levels = [x.permute(1, 2, 0).view(1, -1, *size) for x, size in zip(features, sizes, strict=True)]
            sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
            mask, iou, _, _ = model.sam_mask_decoder(
                image_embeddings=levels[-1],
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                repeat_image=False,
                high_res_features=levels[:-1],
            )
        logits.append(mask)
        ious.append(iou)
    return torch.cat(logits), torch.cat(ious)


@pytest.mark.parametrize("boxes", [None, BOXES], ids=["points", "points+boxes"])
def test_equals_the_official_image_path(backbone: Sam2Backbone, pixels: torch.Tensor, boxes) -> None:
    prompts = Prompts(PROMPTS.points, PROMPTS.labels, boxes)
    logits, iou = official(backbone.module, pixels, prompts)
    masks = backbone.suffix(backbone.prefix(pixels), prompts)
    assert masks.logits.shape == (2, 1, 16, 16)
    torch.testing.assert_close(masks.logits, logits, rtol=0, atol=ATOL)
    torch.testing.assert_close(masks.iou, iou, rtol=0, atol=ATOL)


def test_token_zero_while_training(backbone: Sam2Backbone, pixels: torch.Tensor) -> None:
    decoder = backbone.module.sam_mask_decoder
    masks = backbone.suffix(backbone.prefix(pixels), PROMPTS, training=True)
    decoder.dynamic_multimask_via_stability = False
    try:
        logits, iou = official(backbone.module, pixels, PROMPTS)
    finally:
        decoder.dynamic_multimask_via_stability = True
    torch.testing.assert_close(masks.logits, logits, rtol=0, atol=ATOL)
    torch.testing.assert_close(masks.iou, iou, rtol=0, atol=ATOL)
    assert not decoder.training


def test_prefix_has_all_that_needs_no_module(backbone: Sam2Backbone, pixels: torch.Tensor) -> None:
    prefix = backbone.prefix(pixels)
    assert backbone.site.blocks == (4, 5)
    assert backbone.site.windows == (3, 0)
    assert {name: tuple(value.shape) for name, value in prefix.side.items()} == {
        "high_res_0": (2, 4, 16, 16),
        "high_res_1": (2, 8, 8, 8),
    }
    assert prefix.embedding.shape == (2, 64)
    part = prefix[1:]
    alone = backbone.suffix(part, Prompts(PROMPTS.points[1:], PROMPTS.labels[1:]))
    torch.testing.assert_close(alone.logits, backbone.suffix(prefix, PROMPTS).logits[1:], rtol=0, atol=ATOL)


def test_weights_are_frozen_and_the_same_everywhere(backbone: Sam2Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert backbone.sha256 == backbone.weights_digest() == tiny_sam2_backbone().sha256


def test_building_leaves_hydra_and_random_state_alone() -> None:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    state = torch.get_rng_state()
    tiny_sam2_backbone()
    assert torch.equal(state, torch.get_rng_state())
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks", "window"),
    [
        ("sam2.1_hiera_tiny", range(6, 10), 14),
        ("sam2.1_hiera_small", range(8, 14), 14),
        ("sam2.1_hiera_base_plus", range(13, 21), 14),
        ("sam2.1_hiera_large", range(24, 44), 16),
    ],
)
def test_modules_act_after_the_first_global_block_of_the_third_stage(name: str, blocks: range, window: int) -> None:
    assert name in SAM2_NAMES
    site = Sam2Backbone(name, build_sam2(name), sha256="", is_pretrained=False).site
    assert site.blocks == tuple(blocks)
    assert set(site.windows) == {0, window}
    assert site.grid == 64
    assert site.neck_dim is None
