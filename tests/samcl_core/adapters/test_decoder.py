"""Decoder tuning: the same as really changed weights, one pass a module, and other threads see nothing of it."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from samcl_core.adapters import Adapter, ModuleTensors, build_adapter
from samcl_core.adapters.decoder import DecoderHooks
from samcl_core.backbones import AdapterSite, Backbone, Prefix, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.backbones.base import Decoding
from samcl_core.errors import BankError, ConfigError

PROMPTS = Prompts(
    torch.tensor([[[300.0, 700.0]], [[10.0, 10.0]], [[500.0, 20.0]], [[900.0, 400.0]]]),
    torch.tensor([[1], [1], [0], [1]]),
)


@pytest.fixture(scope="module", params=[tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.param()


def prefix_of(backbone: Backbone, adapter: Adapter) -> Prefix:
    draw = np.random.default_rng(1)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(len(PROMPTS))]
    return backbone.prefix(torch.stack([backbone.preprocess(image) for image in images]), adapter.plan)


def deltas(adapter: Adapter, seed: int) -> ModuleTensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in adapter.shapes().items()}


def decoder_of(backbone: Backbone) -> torch.nn.Module:
    module = backbone.module
    found = module.mask_decoder if hasattr(module, "mask_decoder") else module.sam_mask_decoder
    assert isinstance(found, torch.nn.Module)
    return found


@pytest.mark.parametrize("training", [True, False])
def test_equal_to_changed_weights(backbone: Backbone, training: bool) -> None:
    adapter = build_adapter("decoder", backbone.site)
    prefix, tensors = prefix_of(backbone, adapter), deltas(adapter, 1)
    changed = tiny_backbone() if backbone.name == "tiny" else tiny_sam2_backbone()
    with torch.no_grad():
        adapted = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS), training=training)
        weights = dict(decoder_of(changed).named_parameters())
        for name, delta in tensors.items():
            weights[name] += delta
        expected = changed.suffix(prefix, PROMPTS, training=training)
        plain = backbone.suffix(prefix, PROMPTS, training=training)
    torch.testing.assert_close(adapted.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted.iou, expected.iou, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted.logits, plain.logits, atol=1e-2)


def test_rows_of_zeros_are_the_frozen_decoder_bit_for_bit(backbone: Backbone) -> None:
    adapter = build_adapter("decoder", backbone.site)
    prefix = prefix_of(backbone, adapter)
    with torch.no_grad():
        plain = backbone.suffix(prefix, PROMPTS)
        masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(adapter.null(), PROMPTS))
    assert torch.equal(masks.logits, plain.logits)
    assert torch.equal(masks.iou, plain.iou)


def test_one_pass_for_each_module_not_for_each_sample(backbone: Backbone) -> None:
    adapter = build_adapter("decoder", backbone.site)
    prefix = prefix_of(backbone, adapter)
    sizes: list[int] = []

    class Counting(DecoderHooks):
        def decode(self, call: Decoding):
            def run(part: Decoding, decoder: torch.nn.Module):
                sizes.append(len(part.features))
                return call.run(part, decoder)

            return super().decode(replace(call, run=run))

    modules = [adapter.null(), deltas(adapter, 1), deltas(adapter, 2)]
    stack = {name: torch.stack([module[name] for module in modules]) for name in adapter.shapes()}
    with torch.no_grad():
        for index, expected in (([2, 0, 2, 1], [1, 1, 2]), ([1, 1, 1, 1], [4])):
            sizes.clear()
            backbone.suffix(prefix, PROMPTS, Counting(stack, torch.tensor(index)))
            assert sizes == expected


def test_other_threads_keep_their_own_decoder(backbone: Backbone) -> None:
    """Each pass waits inside the decoder until the others are there, too."""
    adapter = build_adapter("decoder", backbone.site)
    prefix = prefix_of(backbone, adapter)
    modules: list[ModuleTensors | None] = [None, deltas(adapter, 1), deltas(adapter, 2)]
    meeting = threading.Barrier(len(modules), timeout=60)
    found: dict[int, torch.Tensor] = {}

    class Slow(DecoderHooks):
        def decode(self, call: Decoding):
            def run(part: Decoding, decoder: torch.nn.Module):
                meeting.wait()
                masks = call.run(part, decoder)
                meeting.wait()
                return masks

            slow = replace(call, run=run)
            return super().decode(slow) if self._deltas else run(slow, slow.decoder)

    @torch.no_grad()
    def answer(number: int) -> None:
        found[number] = backbone.suffix(prefix, PROMPTS, Slow(modules[number] or {})).logits

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(modules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for number, module in enumerate(modules):
            hooks = None if module is None else adapter.hooks(module, PROMPTS)
            assert torch.equal(found[number], backbone.suffix(prefix, PROMPTS, hooks).logits)


def test_weights_are_shared_and_stay(backbone: Backbone) -> None:
    adapter = build_adapter("decoder", backbone.site)
    before = backbone.weights_digest()
    frozen = {id(value) for value in decoder_of(backbone).parameters()}
    seen: set[int] = set()
    parts: set[int] = set()

    class Looking(DecoderHooks):
        def decode(self, call: Decoding):
            masks = super().decode(call)
            assert self._skeleton is not None
            seen.update(id(value) for value in self._skeleton.parameters())
            parts.update(id(part) for part in self._skeleton.modules())
            return masks

    backbone.suffix(prefix_of(backbone, adapter), PROMPTS, Looking(deltas(adapter, 1)))
    assert seen == frozen
    assert not parts & {id(part) for part in decoder_of(backbone).modules()}
    assert backbone.weights_digest() == before


def test_a_prefix_that_ends_too_early_is_refused(backbone: Backbone) -> None:
    adapter = build_adapter("decoder", backbone.site)
    prefix = prefix_of(backbone, build_adapter("augmodule", backbone.site))
    with pytest.raises(BankError, match=r"the prefix ends after 'blocks'.*need 'encoder'"):
        backbone.suffix(prefix, PROMPTS, adapter.hooks(adapter.null(), PROMPTS))


def test_tensors_are_the_decoder_without_what_training_cannot_reach(backbone: Backbone) -> None:
    adapter = build_adapter("decoder", backbone.site)
    official = {name: tuple(value.shape) for name, value in decoder_of(backbone).named_parameters()}
    assert adapter.shapes().items() <= official.items()
    apart = {name.split(".")[0] for name in official.keys() - adapter.shapes().keys()}
    expected = {"output_hypernetworks_mlps"}
    assert apart == (expected if backbone.name == "tiny" else expected | {"pred_obj_score_head", "conv_s0", "conv_s1"})
    assert sum(math.prod(shape) for shape in adapter.shapes().values()) > 0.6 * sum(map(math.prod, official.values()))


def test_a_backbone_that_does_not_name_its_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="names 0 weights of its mask decoder"):
        build_adapter("decoder", AdapterSite(8, None, 4, (0,), (0,)))
