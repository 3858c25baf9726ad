"""Full-size SAM ViT-B and SAM 2.1 tiny with recipe weights equal the published code: forward, loss, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from samcl_core.backbones import SuffixHooks
from samcl_core.training.loop import _rate
from samcl_core.training.step import Updates

FIRST_BLOCK = {"sam1": 7, "sam2": 6}
WINDOWS = {"sam1": (14, 0, 14, 14, 0), "sam2": (14, 0, 14, 0)}
NO_GRADIENT_AT_ZERO = ("A.", "norm1_", "norm2_", "extra.layer", "extra.norm")


def test_site(case: Any) -> None:
    assert case.backbone.site.blocks[0] == FIRST_BLOCK[case.family]
    assert case.backbone.site.windows == WINDOWS[case.family]
    assert case.adapter.shapes() == case.recipe.augmodule_shapes(case.family)


def test_zeroshot(case: Any) -> None:
    case.check_embedding()
    masks = case.suffix()
    case.check_masks("zeroshot", masks)
    case.check_blocks("zeroshot")
    if case.family == "sam2":
        for level in (0, 1):
            side = case.prefix.side[f"high_res_{level}"]
            case.check_spots("high-resolution features", f"zeroshot_high_res_s{level}", side, "BCHW")


def test_recipe_module(case: Any, network_case: Any) -> None:
    recorder = network_case.Recorder(case.module_hooks())
    masks = case.suffix(recorder)
    case.check_masks("recipe", masks)
    case.check_blocks("recipe")
    for block, added in recorder.added.items():
        kept = added[:1, ::8, ::8] if added.shape[0] == 1 else added[[0, 7, 24], ::2, ::2]
        key = f"block_recipe_block{block:02d}_B_output"
        case.check_block("AugModule: added in each block", kept[:, ::2, ::2, :16].numpy(), key)
    assert tuple(recorder.added) == case.backbone.site.blocks
    if case.family == "sam1":
        neck = recorder.neck
        case.check_spots("AugModule: block outputs", "recipe_block11", neck["last_block"], "BHWC")
        case.check_spots("AugModule: neck", "recipe_neck_input", neck["neck_input"], "BHWC")
        case.check_spots("AugModule: neck", "recipe_neck", neck["neck"], "BCHW")
        embeddings = neck["image_embeddings"][:, :8, ::4, ::4].numpy()
        case.check_block("AugModule: image embeddings", embeddings, "block_recipe_image_embeddings_ch8")


def test_module_in_fewer_bytes(case: Any) -> None:
    case.check_stored(case.tensors, {"float16": 0.999, "int8": 0.98})


@contextmanager
def acting(encoder: Any, hooks: SuffixHooks, blocks: tuple[int, ...]) -> Iterator[None]:
    """The official encoder with a module in it: its own forward pass, unsplit, as the published code runs it."""
    layers = encoder.blocks if hasattr(encoder, "blocks") else encoder.trunk.blocks
    handles = [
        layers[index].attn.register_forward_hook(lambda _layer, args, out, at=index: hooks.attention(at, args[0], out))
        for index in blocks
    ]
    if hasattr(encoder, "blocks"):
        before = lambda _layer, args: hooks.neck_input(args[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
        handles.append(encoder.neck.register_forward_pre_hook(before))
        handles.append(encoder.neck.register_forward_hook(lambda _layer, _args, out: hooks.neck_output(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_full_pass_equals_prefix_and_suffix(case: Any) -> None:
    hooks, network = case.module_hooks(), case.backbone.module
    with torch.no_grad():
        split = case.backbone.encode(case.prefix, hooks)
        with acting(network.image_encoder, hooks, case.backbone.site.blocks):
            if case.family == "sam1":
                full = network.image_encoder(case.pixels)
            else:
                lowest = network.forward_image(case.pixels)["backbone_fpn"][-1]
                full = lowest + network.no_mem_embed.reshape(1, -1, 1, 1)
    tolerance = case.tolerance
    for what, found in (("split", split), ("full", full)):
        quantity = f"AugModule: image embeddings, {what} pass"
        if case.family == "sam1":
            kept, key = found[:, :8, ::4, ::4].numpy(), "block_recipe_image_embeddings_ch8"
        else:
            kept, key = case.recipe.spots(found.numpy(), "BCHW")[..., :24], "block_recipe_image_embed_spots"
        case.check_block(quantity, kept, key)
    torch.testing.assert_close(split, full, atol=tolerance.spots_atol, rtol=tolerance.spots_rtol)


def test_sam2_token_zero_while_training(sam2: Any, parity: Any) -> None:
    sam2.parity = parity
    masks = sam2.suffix(sam2.module_hooks(), training=True)
    sam2.check_masks("trainmode", masks)
    assert float(masks.iou) == pytest.approx(float(sam2.arrays["recipe_iou_all_tokens"][0, 0]), abs=1e-5)


@pytest.mark.slow
def test_gradients_of_one_step(case: Any, golden: Any) -> None:
    before = case.backbone.weights_digest()
    case.check_gradients(golden(f"gradients_{case.family}"))
    assert case.backbone.weights_digest() == before
    assert all(parameter.grad is None for parameter in case.backbone.module.parameters())


@pytest.mark.slow
def test_gradients_of_a_new_module(case: Any, golden: Any) -> None:
    arrays = golden(f"gradients_{case.family}")
    tensors = {
        name: torch.zeros_like(value) if name.startswith(("B_", "extra.upward")) else value
        for name, value in case.tensors.items()
    }
    loss, found = case.gradients(tensors)
    case.check_loss("new module", loss, arrays["zeroinit_loss_steps"][0])
    names = [str(name) for name in arrays["zeroinit_grad_names"]]
    norms = [float(found[name].double().norm()) for name in names]
    recorded, rtol = arrays["zeroinit_grad_norm"], case.tolerance.gradient_rtol
    case.parity("new module: norm of each gradient", case.label, norms, recorded, rtol=rtol)
    for name, norm in zip(names, norms, strict=True):
        assert (norm == 0) == name.startswith(NO_GRADIENT_AT_ZERO), name


@pytest.mark.slow
def test_three_steps_of_training(case: Any, golden: Any) -> None:
    """Through the training loop's own step, with the rates of the published schedule."""
    arrays, options = golden(f"gradients_{case.family}"), case.params.train
    leaves = {name: value.clone().requires_grad_() for name, value in case.tensors.items()}
    adam = torch.optim.Adam(leaves.values(), lr=options.lr)
    update = Updates(case.backbone, case.adapter, leaves, options, adam)
    for step, expected in enumerate(arrays["synthetic_loss_steps"]):
        adam.param_groups[0]["lr"] = _rate(options, step, num_steps=options.epochs)
        loss = update([case.batch()])
        case.parity("training: loss of steps 1 to 3", case.label, loss["total"], expected[3], rtol=1e-3)
    names = [str(name) for name in arrays["synthetic_grad_names"]]
    norms = [float(leaves[name].detach().double().norm()) for name in names]
    case.parity(
        "training: tensors after 3 steps, norms", case.label, norms, arrays["synthetic_after_steps_norm"], rtol=1e-3
    )
