"""What every registered adapter must do, on every backbone that can carry it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from samcl_core.adapters import Adapter, ModuleTensors, build_adapter, registered_adapters
from samcl_core.backbones import Backbone, Masks, Prefix, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.errors import BankError, ConfigError, PromptError

OPTIONS: dict[str, dict[str, Any]] = {
    "augmodule": {"rank": 4},
    "decoder": {},
    "hq_decoder": {},
    "lora": {"rank": 3, "alpha": 6.0},
    "prompt_tokens": {"num_tokens": 3},
    "sam_adapter": {"reduction": 4},
    "slora": {"rank": 4},
}
BACKBONES = {"sam": tiny_backbone, "sam2": tiny_sam2_backbone}
CHANGES_WHEN_FRESH = {"hq_decoder", "prompt_tokens"}
REFUSED: dict[tuple[str, str], str] = {
    ("hq_decoder", "sam2"): "it needs the features 'first_global' of SAM's encoder, the backbone gives none",
    ("sam_adapter", "sam2"): "it needs high_frequency, patches of the backbone, which gives none",
}
CASES = [(kind, name) for kind in OPTIONS for name in BACKBONES if (kind, name) not in REFUSED]
PROMPTS = Prompts(
    torch.tensor(
        [
            [[100.0, 200.0], [900.0, 30.0]],
            [[512.0, 512.0], [0.0, 1023.0]],
            [[7.0, 3.0], [640.0, 600.0]],
            [[333.0, 3.0], [640.0, 999.0]],
            [[200.0, 700.0], [800.0, 90.0]],
        ]
    ),
    torch.tensor([[1, 0], [1, 1], [0, 1], [1, -1], [1, 1]]),
)
# In float64. The prompt encoder's float32 is another one in a batch of another size.
RTOL, RTOL_OTHER_SIZE = 1e-9, 1e-5


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    """In float64: untrained networks amplify float32's rounding to what a small mistake would change."""
    found = {}
    for name, make in BACKBONES.items():
        backbone = make()
        backbone.module.double()
        for part in backbone.module.modules():
            if hasattr(part, "pe_layer"):
                part.pe_layer.float()  # it computes in float32 by itself
        found[name] = backbone
    return found


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, backbones: dict[str, Backbone]) -> tuple[Adapter, Backbone, Prefix]:
    kind, name = request.param
    backbone = backbones[name]
    adapter = build_adapter(kind, backbone.site, **OPTIONS[kind])
    draw = np.random.default_rng(7)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(len(PROMPTS))]
    pixels = torch.stack([backbone.preprocess(image) for image in images]).double()
    return adapter, backbone, backbone.prefix(pixels, adapter.plan)


def rows_of(prompts: Prompts, rows: slice) -> Prompts:
    return Prompts(prompts.points[rows], prompts.labels[rows])


def part(masks: Masks, rows: slice) -> Masks:
    return Masks(masks.logits[rows], masks.iou[rows])


def assert_same(found: Masks, expected: Masks, rtol: float = RTOL) -> None:
    for name in ("logits", "iou"):
        left, right = getattr(found, name), getattr(expected, name)
        assert float((left - right).norm()) <= rtol * float(right.norm()), name


def trained(adapter: Adapter, seed: int) -> ModuleTensors:
    """Tensors that change something everywhere."""
    draw = torch.Generator().manual_seed(seed)
    fresh = double(adapter.fresh(seed))
    return {name: value + 0.1 * torch.randn(value.shape, generator=draw) for name, value in fresh.items()}


def double(tensors: ModuleTensors) -> ModuleTensors:
    return {name: value.double() for name, value in tensors.items()}


def stacked(adapter: Adapter, modules: list[ModuleTensors]) -> ModuleTensors:
    return {name: torch.stack([module[name] for module in modules]) for name in adapter.shapes()}


def test_every_kind_is_tested() -> None:
    assert sorted(OPTIONS) == list(registered_adapters())


def test_tensors_are_declared(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter, backbone, _ = case
    state = torch.get_rng_state()
    shapes = adapter.shapes()
    for tensors in (adapter.fresh(1), adapter.null()):
        assert list(tensors) == list(shapes)
        assert {name: tuple(value.shape) for name, value in tensors.items()} == shapes
        assert all(value.dtype == torch.float32 for value in tensors.values())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(value.any() for value in adapter.null().values())
    again = build_adapter(adapter.kind, backbone.site, **adapter.parameters())
    assert (again.parameters(), again.shapes(), again.plan) == (adapter.parameters(), shapes, adapter.plan)


def test_fresh_modules_follow_their_seed(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter = case[0]
    first, again, other = adapter.fresh(1), adapter.fresh(1), adapter.fresh(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    if any(value.any() for value in first.values()):
        assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("make", ["fresh", "null"])
def test_a_module_without_training_changes_nothing(case: tuple[Adapter, Backbone, Prefix], make: str) -> None:
    adapter, backbone, prefix = case
    tensors = double(adapter.null() if make == "null" else adapter.fresh(3))
    if make == "fresh" and adapter.kind in CHANGES_WHEN_FRESH:
        return
    plain = backbone.suffix(prefix, PROMPTS, training=True)
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS), training=True)
    assert_same(masks, plain)


def test_gradients_reach_the_module_alone(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter, backbone, prefix = case
    before = backbone.weights_digest()
    leaves = {name: value.requires_grad_() for name, value in double(adapter.fresh(1)).items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for _ in range(2):
        adam.zero_grad()
        masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(leaves, PROMPTS), training=True)
        ((masks.logits - 1).square().mean() + (masks.iou - 1).square().mean()).backward()
        moved = {name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()}
        assert moved, "a new module cannot learn"
        adam.step()
    assert moved >= set(leaves)
    assert all(parameter.grad is None for parameter in backbone.module.parameters())
    assert backbone.weights_digest() == before


def test_a_mixed_batch_is_many_single_ones(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter, backbone, prefix = case
    modules = [double(adapter.null()), *(trained(adapter, seed) for seed in (1, 2, 3))]
    index = torch.tensor([2, 0, 1, 3, 2])
    with torch.no_grad():
        hooks = adapter.hooks(stacked(adapter, modules), PROMPTS, index)
        mixed = backbone.suffix(prefix, PROMPTS, hooks, training=True)
        plain = backbone.suffix(prefix, PROMPTS, training=True)
        for row, module in enumerate(index.tolist()):
            rows = slice(row, row + 1)
            same = backbone.suffix(prefix, PROMPTS, adapter.hooks(modules[module], PROMPTS), training=True)
            assert_same(part(mixed, rows), part(same, rows))
            prompts = rows_of(PROMPTS, rows)
            alone = backbone.suffix(prefix[rows], prompts, adapter.hooks(modules[module], prompts), training=True)
            assert_same(part(mixed, rows), alone, RTOL_OTHER_SIZE)
    assert_same(part(mixed, slice(1, 2)), part(plain, slice(1, 2)))
    assert not torch.allclose(mixed.logits[0], plain.logits[0], atol=1e-3)
    assert not torch.allclose(mixed.logits[2], plain.logits[2], atol=1e-3)


def test_gradients_of_stacked_modules_go_to_the_rows_used(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter, backbone, prefix = case
    leaves = {
        name: value.requires_grad_()
        for name, value in stacked(adapter, [trained(adapter, seed) for seed in (1, 2)]).items()
    }
    hooks = adapter.hooks(leaves, PROMPTS, torch.ones(len(PROMPTS), dtype=torch.long))
    backbone.suffix(prefix, PROMPTS, hooks, training=True).logits.square().mean().backward()
    single = {name: value.clone().requires_grad_() for name, value in trained(adapter, 2).items()}
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(single, PROMPTS), training=True)
    masks.logits.square().mean().backward()
    for name, leaf in leaves.items():
        expected = single[name].grad
        if expected is None or not expected.any():
            assert leaf.grad is None or not leaf.grad.any(), name
            continue
        assert leaf.grad is not None and not leaf.grad[0].any(), name
        assert float((leaf.grad[1] - expected).norm()) <= 1e-8 * float(expected.norm()), name


def test_wrong_tensors_are_named(case: tuple[Adapter, Backbone, Prefix]) -> None:
    adapter = case[0]
    tensors = adapter.null()
    name = next(iter(tensors))
    with pytest.raises(BankError, match=f"{name} is missing"):
        adapter.hooks({key: value for key, value in tensors.items() if key != name}, PROMPTS)
    with pytest.raises(BankError, match=f"{name} has shape .*7"):
        adapter.hooks({**tensors, name: torch.zeros(7, 1, 1, 1, 1)}, PROMPTS)
    with pytest.raises(PromptError, match=r"index has shape \(2,\), expected \(5,\)"):
        adapter.hooks(stacked(adapter, [tensors]), PROMPTS, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(("kind", "name"), sorted(REFUSED))
def test_a_backbone_that_cannot_carry_it_is_refused(kind: str, name: str, backbones: dict[str, Backbone]) -> None:
    with pytest.raises(ConfigError, match=REFUSED[kind, name]):
        build_adapter(kind, backbones[name].site, **OPTIONS[kind])


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_unknown_options_are_refused(kind: str, backbones: dict[str, Backbone]) -> None:
    with pytest.raises(ConfigError, match="colour"):
        build_adapter(kind, backbones["sam"].site, colour="red")


def _values(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in options.items() if isinstance(value, int)]


@pytest.mark.parametrize(("kind", "option"), [(kind, name) for kind in OPTIONS for name, _ in _values(OPTIONS[kind])])
@pytest.mark.parametrize("value", [0, -3, True, "many"])
def test_numbers_are_checked(kind: str, option: str, value: Any, backbones: dict[str, Backbone]) -> None:
    with pytest.raises(ConfigError, match=f"{option} is {value!r}"):
        build_adapter(kind, backbones["sam"].site, **{option: value})


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_modules_run_under_autocast(kind: str) -> None:
    backbone = tiny_backbone()
    adapter = build_adapter(kind, backbone.site, **OPTIONS[kind])
    draw = np.random.default_rng(7)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(len(PROMPTS))]
    prefix = backbone.prefix(torch.stack([backbone.preprocess(image) for image in images]), adapter.plan)
    modules = [{name: value.float() for name, value in trained(adapter, seed).items()} for seed in (1, 2)]
    hooks = adapter.hooks(stacked(adapter, modules), PROMPTS, torch.tensor([0, 1, 0, 1, 1]))
    with torch.no_grad():
        full = backbone.suffix(prefix, PROMPTS, hooks).logits
        with torch.autocast("cpu", torch.bfloat16):
            short = backbone.suffix(prefix, PROMPTS, hooks).logits
    assert float((short.float() - full).abs().mean()) < 0.2 * float(full.std())
