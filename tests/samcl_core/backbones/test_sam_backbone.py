"""A SAM split into prefix and suffix is still the official SAM."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition

from samcl_core.backbones import Masks, Prefix, Prompts, SamBackbone, tiny_backbone
from samcl_core.backbones.blocks import join_windows, split_windows
from samcl_core.errors import ImageError, PromptError

# Float32 rounds differently in every order of summation: ours may be off by what the official order is off, times this.
ROUNDING = 4


@pytest.fixture(scope="module")
def backbone() -> SamBackbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def pixels(backbone: SamBackbone) -> torch.Tensor:
    draw = np.random.default_rng(5)
    return torch.stack([backbone.preprocess(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)])


PROMPTS = Prompts(
    torch.tensor([[[100.0, 200.0], [900.0, 30.0]], [[512.0, 512.0], [0.0, 1023.0]], [[7.0, 3.0], [640.0, 600.0]]]),
    torch.tensor([[1, 0], [1, 1], [0, 1]]),
)
BOXES = torch.tensor([[10.0, 20.0, 500.0, 600.0], [0.0, 0.0, 1023.0, 1023.0], [300.0, 310.0, 320.0, 900.0]])


def official(sam: Any, images: torch.Tensor, prompts: Prompts, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The official network, image by image; the encoder's and the decoder's numbers are those of ``embeddings``."""
    factor, dtype = sam.image_encoder.img_size / 1024, embeddings.dtype
    logits, ious = [], []
    for row in range(len(images)):
        used = prompts.labels[row] != -1
        points = (prompts.points[row : row + 1, used] * factor, prompts.labels[row : row + 1, used])
        boxes = None if prompts.boxes is None else prompts.boxes[row : row + 1] * factor
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder.float()(points=points if used.any() else None, boxes=boxes, masks=None)
            mask, iou = sam.mask_decoder(
                image_embeddings=embeddings[row : row + 1],
                image_pe=sam.prompt_encoder.get_dense_pe().to(dtype),
                sparse_prompt_embeddings=sparse.to(dtype),
                dense_prompt_embeddings=dense.to(dtype),
                multimask_output=False,
            )
        logits.append(mask)
        ious.append(iou)
    return torch.cat(logits), torch.cat(ious)


def assert_official(backbone: SamBackbone, pixels: torch.Tensor, prompts: Prompts) -> Masks:
    """As near to the official network in double precision as the official network in float32 is."""
    masks = backbone.suffix(backbone.prefix(pixels), prompts)
    precise = copy.deepcopy(backbone.module).double()
    with torch.no_grad():
        single = torch.cat([backbone.module.image_encoder(image[None]) for image in pixels])
        double = torch.cat([precise.image_encoder(image[None].double()) for image in pixels])
    rounded = official(backbone.module, pixels, prompts, single)
    exact = official(precise, pixels, prompts, double)
    for found, other, wanted in zip((masks.logits, masks.iou), rounded, exact, strict=True):
        limit = ROUNDING * max(float((other - wanted).abs().max()), torch.finfo(torch.float32).eps)
        assert limit < 1e-5
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=limit)
    return masks


@pytest.mark.parametrize("boxes", [None, BOXES], ids=["points", "points+boxes"])
def test_equals_the_official_network(backbone: SamBackbone, pixels: torch.Tensor, boxes: torch.Tensor | None) -> None:
    prompts = Prompts(PROMPTS.points, PROMPTS.labels, boxes)
    masks = assert_official(backbone, pixels, prompts)
    assert masks.logits.shape == (3, 1, 32, 32)


def test_box_alone(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    prompts = Prompts(torch.zeros(3, 2, 2), torch.full((3, 2), -1), BOXES)
    assert_official(backbone, pixels, prompts)


def test_padding_points_leave_no_trace(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    """A batch with one, two and three points, padded anywhere, answers like the images alone."""
    prompts = Prompts(
        torch.tensor(
            [
                [[5.0, 5.0], [100.0, 200.0], [9.0, 9.0]],
                [[1.0, 2.0], [300.0, 4.0], [500.0, 600.0]],
                [[700.0, 800.0], [50.0, 60.0], [1.0, 1.0]],
            ]
        ),
        torch.tensor([[-1, 1, -1], [1, 0, 1], [1, 1, -1]]),
    )
    assert_official(backbone, pixels, prompts)


def test_no_prompt_at_all(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    masks = backbone.suffix(backbone.prefix(pixels), Prompts(torch.zeros(3, 0, 2), torch.zeros(3, 0).long()))
    assert torch.isfinite(masks.logits).all()


def test_prefix_is_what_the_blocks_before_the_split_compute(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    prefix = backbone.prefix(pixels)
    assert backbone.site.blocks == (2, 3)
    assert backbone.site.windows == (3, 0)
    assert prefix.tokens.shape == (3, 8, 8, 16)
    torch.testing.assert_close(prefix.embedding, prefix.tokens.mean(dim=(1, 2)))
    assert not prefix.tokens.requires_grad
    assert prefix.side == {}


def test_half_precision_prefix_is_read(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    prefix = backbone.prefix(pixels)
    half = Prefix(prefix.tokens.half(), prefix.embedding.half())
    masks = backbone.suffix(half, PROMPTS)
    assert masks.logits.dtype == torch.float32
    torch.testing.assert_close(masks.logits, backbone.suffix(prefix, PROMPTS).logits, rtol=0, atol=0.02)


def test_weights_are_frozen_and_the_same_everywhere(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert backbone.sha256 == backbone.weights_digest() == tiny_backbone().sha256
    state = torch.get_rng_state()
    tiny_backbone()
    assert torch.equal(state, torch.get_rng_state())
    backbone.suffix(backbone.prefix(pixels), PROMPTS)
    assert backbone.weights_digest() == backbone.sha256


def test_digest_sees_every_weight() -> None:
    backbone = tiny_backbone()
    before = backbone.weights_digest()
    with torch.no_grad():
        backbone.module.mask_decoder.iou_token.weight[0, 0] += 1e-6
    assert backbone.weights_digest() != before


@pytest.mark.parametrize("window", [1, 3, 4, 8, 14])
def test_windows_equal_the_official_ones(window: int) -> None:
    x = torch.randn(2, 8, 7, 5)
    expected, padded = window_partition(x, window)
    windows = split_windows(x, window)
    assert torch.equal(windows, expected)
    assert torch.equal(join_windows(windows, 8, 7), window_unpartition(expected, window, padded, (8, 7)))
    assert torch.equal(join_windows(windows, 8, 7), x)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
    ],
)
def test_preprocess_refuses(backbone: SamBackbone, image: np.ndarray, found: str) -> None:
    with pytest.raises(ImageError, match=found):
        backbone.preprocess(image)


def test_prompts_that_do_not_fit_are_refused(backbone: SamBackbone, pixels: torch.Tensor) -> None:
    prefix = backbone.prefix(pixels)
    with pytest.raises(PromptError, match=r"points are \(3, 2, 2\) and labels \(3, 1\)"):
        backbone.suffix(prefix, Prompts(PROMPTS.points, PROMPTS.labels[:, :1]))
    with pytest.raises(PromptError, match=r"boxes are \(2, 4\)"):
        backbone.suffix(prefix, Prompts(PROMPTS.points, PROMPTS.labels, BOXES[:2]))
