"""AugModule: what it changes, what it must never change, and that a mixed batch is many single ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samcl_core.adapters import AugModule, build_adapter, register_adapter, registered_adapters
from samcl_core.adapters.augmodule import AugModuleConfig
from samcl_core.backbones import AdapterSite, Backbone, Prefix, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.backbones.blocks import split_windows
from samcl_core.errors import BankError, ConfigError, PromptError

# Batches of another size sum in another order. On logits up to 4 the frozen network alone differs by 7e-6 between a
# batch and its rows, with modules by 4e-5.
ATOL = 1e-4
PROMPTS = Prompts(
    torch.tensor(
        [
            [[100.0, 200.0], [900.0, 30.0]],
            [[512.0, 512.0], [0.0, 1023.0]],
            [[7.0, 3.0], [640.0, 600.0]],
            [[333.0, 3.0], [640.0, 999.0]],
        ]
    ),
    torch.tensor([[1, 0], [1, 1], [0, 1], [1, -1]]),
)


@pytest.fixture(scope="module", params=[tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.param()


@pytest.fixture(scope="module")
def prefix(backbone: Backbone) -> Prefix:
    draw = np.random.default_rng(7)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(4)]
    return backbone.prefix(torch.stack([backbone.preprocess(image) for image in images]))


def adapter_of(backbone: Backbone, **parameters) -> AugModule:
    adapter = build_adapter("augmodule", backbone.site, **{"rank": 4, **parameters})
    assert isinstance(adapter, AugModule)
    return adapter


def trained(adapter: AugModule, seed: int) -> dict[str, torch.Tensor]:
    """Tensors that change something everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=draw) for name, value in adapter.fresh(seed).items()}


def test_sizes_of_the_paper() -> None:
    sam = build_adapter("augmodule", AdapterSite(768, 256, 64, (7, 8, 9, 10, 11), (14, 0, 14, 14, 0)))
    sam2 = build_adapter("augmodule", AdapterSite(384, None, 64, (6, 7, 8, 9), (14, 0, 14, 0)))
    for adapter, tensors, numbers in ((sam, 40, 61_524), (sam2, 30, 21_036)):
        assert len(adapter.shapes()) == tensors
        assert sum(value.numel() for value in adapter.fresh(0).values()) == numbers
        assert {name: tuple(value.shape) for name, value in adapter.null().items()} == adapter.shapes()
    assert not any("upward" in name for name in sam2.shapes())


@pytest.mark.parametrize("make", ["fresh", "null"])
def test_a_module_without_training_changes_nothing(backbone: Backbone, prefix: Prefix, make: str) -> None:
    adapter = adapter_of(backbone)
    tensors = adapter.null() if make == "null" else adapter.fresh(3)
    plain = backbone.suffix(prefix, PROMPTS)
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS))
    assert torch.equal(masks.logits, plain.logits)
    assert torch.equal(masks.iou, plain.iou)


def test_fresh_modules_follow_their_seed(backbone: Backbone) -> None:
    adapter = adapter_of(backbone)
    state = torch.get_rng_state()
    first, again, other = adapter.fresh(1), adapter.fresh(1), adapter.fresh(2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["A.weight"], other["A.weight"])
    assert all(value.dtype == torch.float32 for value in first.values())
    assert not first["B_000.weight"].any()
    assert torch.equal(first["norm1_000.weight"], torch.ones(4))


def test_a_mixed_batch_is_many_single_ones(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    modules = [adapter.null(), trained(adapter, 1), trained(adapter, 2)]
    stacked = {name: torch.stack([module[name] for module in modules]) for name in adapter.shapes()}
    index = torch.tensor([2, 0, 1, 2])
    with torch.no_grad():
        mixed = backbone.suffix(prefix, PROMPTS, adapter.hooks(stacked, PROMPTS, index), training=True)
        plain = backbone.suffix(prefix, PROMPTS, training=True)
        for row, module in enumerate(index.tolist()):
            rows = slice(row, row + 1)
            prompts = Prompts(PROMPTS.points[rows], PROMPTS.labels[rows])
            hooks = adapter.hooks(modules[module], prompts)
            alone = backbone.suffix(prefix[rows], prompts, hooks, training=True)
            torch.testing.assert_close(mixed.logits[rows], alone.logits, rtol=1e-5, atol=ATOL)
            torch.testing.assert_close(mixed.iou[rows], alone.iou, rtol=1e-5, atol=ATOL)
    assert torch.equal(mixed.logits[1], plain.logits[1])
    assert torch.equal(mixed.iou[1], plain.iou[1])
    assert not torch.allclose(mixed.logits[0], plain.logits[0], atol=1e-3)


def test_gradients_reach_the_module_alone(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    leaves = {name: value.requires_grad_() for name, value in trained(adapter, 1).items()}
    before = backbone.weights_digest()
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(leaves, PROMPTS), training=True)
    (masks.logits.square().mean() + masks.iou.square().mean()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in backbone.module.parameters())
    assert backbone.weights_digest() == before


def test_gradients_of_stacked_modules_go_to_the_rows_used(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    modules = [trained(adapter, seed) for seed in (1, 2)]
    stacked = {name: torch.stack([m[name] for m in modules]).requires_grad_() for name in adapter.shapes()}
    hooks = adapter.hooks(stacked, PROMPTS, torch.tensor([1, 1, 1, 1]))
    backbone.suffix(prefix, PROMPTS, hooks, training=True).logits.square().mean().backward()
    single = {name: value.clone().requires_grad_() for name, value in modules[1].items()}
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(single, PROMPTS), training=True)
    masks.logits.square().mean().backward()
    for name, leaf in stacked.items():
        assert leaf.grad is not None and not leaf.grad[0].any(), name
        expected = single[name].grad
        assert expected is not None
        assert float((leaf.grad[1] - expected).norm()) <= 2e-3 * float(expected.norm()) + 1e-6, name


def test_gradcheck() -> None:
    site = AdapterSite(3, 2, 4, (0, 1), (3, 0))
    adapter = build_adapter("augmodule", site, rank=2)
    draw = torch.Generator().manual_seed(0)
    shapes = adapter.shapes()
    values = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes.values()]
    x = torch.randn(1, 4, 4, 3, generator=draw, dtype=torch.float64)
    prompts = Prompts(torch.tensor([[[300.0, 700.0]]]), torch.ones(1, 1).long())

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        hooks = adapter.hooks(dict(zip(shapes, tensors, strict=True)), prompts)
        windows = split_windows(x, 3)
        parts = [hooks.attention(0, windows, windows), hooks.attention(1, x, x), hooks.neck_input(x)]
        return torch.cat([part.flatten() for part in [*parts, hooks.neck_output(x.permute(0, 3, 1, 2)[:, :2])]])

    assert torch.autograd.gradcheck(run, values)


def test_each_window_sees_its_own_crop() -> None:
    """The published code shows every window the whole map, shrunk; here a window far from the point stays cold."""
    site = AdapterSite(8, None, 64, (0,), (14,))
    prompts = Prompts(torch.tensor([[[40.0, 40.0]]]), torch.ones(1, 1).long())
    x = torch.zeros(25, 14, 14, 8)
    added = {}
    for option in ("crop", "shrink"):
        adapter = build_adapter("augmodule", site, rank=4, window_heatmap=option)
        added[option] = adapter.hooks(trained(adapter, 1), prompts).attention(0, x, x)
    crop, shrink = added["crop"], added["shrink"]
    assert all(torch.equal(shrink[0], window) for window in shrink)
    assert not torch.allclose(crop[0], crop[1], atol=1e-3)
    assert torch.equal(crop[6], crop[7])
    # Cells beyond the picture are padding, as the tokens there are: no prompt, not even a cold one.
    beyond = crop[24][8:, 8:]
    assert torch.equal(beyond, beyond[:1, :1].expand_as(beyond))
    assert not torch.allclose(crop[24][0, 0], crop[24][13, 13], atol=1e-4)


def test_axes_at_the_neck() -> None:
    site = AdapterSite(8, 6, 16, (0,), (0,))
    prompts = Prompts(torch.tensor([[[960.0, 64.0]]]), torch.ones(1, 1).long())
    x, y = torch.zeros(1, 16, 16, 8), torch.zeros(1, 6, 16, 16)
    right, published = (build_adapter("augmodule", site, rank=4, neck_axes=axes) for axes in ("image", "transposed"))
    tensors = trained(right, 1)
    at_input = right.hooks(tensors, prompts).neck_input(x)
    at_output = right.hooks(tensors, prompts).neck_output(y)
    changed = (at_input - at_input[:, 8, 8]).abs().sum(-1)[0]
    assert tuple(torch.nonzero(changed == changed.max())[0].tolist()) == (1, 15)
    assert torch.equal(published.hooks(tensors, prompts).neck_input(x), at_input.transpose(1, 2))
    assert torch.equal(published.hooks(tensors, prompts).neck_output(y), at_output.transpose(2, 3))
    attention = right.hooks(tensors, prompts).attention(0, x, x)
    assert torch.equal(published.hooks(tensors, prompts).attention(0, x, x), attention)


def test_background_points_count_as_such() -> None:
    site = AdapterSite(8, None, 64, (0,), (0,))
    x = torch.zeros(1, 64, 64, 8)
    points = torch.tensor([[[300.0, 300.0]]])
    signed, published = (
        build_adapter("augmodule", site, rank=4, point_labels=labels) for labels in ("signed", "ignored")
    )
    tensors = trained(signed, 1)

    def act(adapter, label: int) -> torch.Tensor:
        return adapter.hooks(tensors, Prompts(points, torch.tensor([[label]]))).attention(0, x, x)

    assert torch.equal(act(published, 0), act(published, 1))
    assert not torch.allclose(act(signed, 0), act(signed, 1), atol=1e-3)
    assert torch.equal(act(signed, 1), act(published, 1))
    assert torch.equal(act(signed, -1), act(published, -1))


def test_module_runs_under_autocast(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    tensors = trained(adapter, 1)
    with torch.no_grad():
        full = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS), training=True)
        with torch.autocast("cpu", torch.bfloat16):
            hooks = adapter.hooks(tensors, PROMPTS)
            short = backbone.suffix(prefix, PROMPTS, hooks, training=True)
            heat = hooks._features
    assert torch.isfinite(short.logits).all()
    assert heat.shape[0] == 4
    spread = float(full.logits.std())
    assert float((short.logits.float() - full.logits).abs().mean()) < 0.2 * spread


def test_tensors_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    adapter = adapter_of(backbone)
    tensors = adapter.fresh(0)
    with pytest.raises(BankError, match=r"A\.weight has shape"):
        adapter.hooks({**tensors, "A.weight": torch.zeros(3, 3)}, PROMPTS)
    missing = {name: value for name, value in tensors.items() if name != "B_001.bias"}
    with pytest.raises(BankError, match=r"B_001\.bias is missing"):
        adapter.hooks(missing, PROMPTS)
    stacked = {name: value[None] for name, value in tensors.items()}
    with pytest.raises(PromptError, match=r"index has shape \(2,\), expected \(4,\)"):
        adapter.hooks(stacked, PROMPTS, torch.zeros(2).long())


def test_settings_survive_and_wrong_ones_are_refused(backbone: Backbone) -> None:
    adapter = adapter_of(backbone, window_heatmap="shrink", neck_axes=None)
    assert adapter.parameters() == {
        "rank": 4,
        "window_heatmap": "shrink",
        "neck_axes": "image",
        "point_labels": "signed",
    }
    again = build_adapter(adapter.kind, replace(backbone.site), **adapter.parameters())
    assert again.shapes() == adapter.shapes()
    for wrong, found in (({"rank": 0}, "rank is 0"), ({"window_heatmap": "x"}, "'x'"), ({"colour": 1}, "colour")):
        with pytest.raises(ConfigError, match=found):
            build_adapter("augmodule", backbone.site, **wrong)
    assert AugModuleConfig().as_json()["rank"] == 10


def test_registry() -> None:
    assert "augmodule" in registered_adapters()
    with pytest.raises(ValueError, match="'augmodule' is already registered"):
        register_adapter("augmodule", lambda site, **parameters: AugModule(site, AugModuleConfig()))
    with pytest.raises(ConfigError, match="'nothing'"):
        build_adapter("nothing", AdapterSite(8, None, 8, (0,), (0,)))
