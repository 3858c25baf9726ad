"""One update from parts of a batch, in other number formats, and where memory ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones import Backbone, Masks
from samcl_core.config import TrainParams, parse_params
from samcl_core.domains.layout import Sample
from samcl_core.errors import ConfigError, TrainingError
from samcl_core.training import Batch, Extra, Forward, MaskCache, PrefixCache, Updates, train_module
from samcl_core.training.batches import batches, shares
from samcl_core.training.precision import precision_of

DIVISIBLE = [
    {"loss_reduction": "mean", "upsampling": "bilinear"},
    {"loss_reduction": "reference", "upsampling": "nearest"},
    {"loss": "cosam", "prompts": "cosam"},
]


class Pull(Extra):
    """A penalty that depends on the batch, as a mean over its images, and one that does not."""

    def __init__(self) -> None:
        self.num_gradients = 0

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor:
        return found.logits.float().square().mean() + torch.stack([t.square().sum() for t in tensors.values()]).sum()

    def after_backward(self, tensors: ModuleTensors) -> None:
        self.num_gradients += 1


def gradients_of(
    backbone: Backbone, adapter: Adapter, samples: Sequence[Sample], options: TrainParams, extra: Extra
) -> list[tuple[dict[str, float], Tensor]]:
    """For each step of one epoch its loss and the update of plain descent."""
    found = []
    steps = batches(
        backbone, PrefixCache(None, backbone), MaskCache(backbone.image_size), samples, options, 3, 0, extra
    )
    for parts in steps:
        tensors = {name: tensor.clone().requires_grad_() for name, tensor in adapter.fresh(3).items()}
        with torch.no_grad():  # a fresh module changes nothing, so that half of its gradients are zero
            for number, tensor in enumerate(tensors.values()):
                tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        before = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
        descent = torch.optim.SGD(tensors.values(), lr=1.0)
        values = Updates(backbone, adapter, tensors, options, descent, extra)(parts)
        found.append((values, before - torch.cat([tensor.detach().flatten() for tensor in tensors.values()])))
    return found


@pytest.mark.parametrize("how", DIVISIBLE, ids=["mean", "reference", "cosam"])
def test_the_update_of_parts_is_the_update_of_the_batch(
    case: ModuleType, backbone: Backbone, adapter: Adapter, samples: list[Sample], how: dict[str, Any]
) -> None:
    options = case.OPTIONS.model_copy(update={"batch_size": 6} | how)
    whole = gradients_of(backbone, adapter, samples, options, Pull())
    divided = gradients_of(backbone, adapter, samples, options.model_copy(update={"accumulate": 4}), extra := Pull())
    assert len(whole) == len(divided) == 2  # of 6 and of 4 images: parts of 1 and 2, and of 1
    assert extra.num_gradients == 2, "once an update"
    for (values, gradient), (parts, summed) in zip(whole, divided, strict=True):
        assert "penalty" in values and parts == pytest.approx(values, rel=1e-5)
        assert gradient.abs().max() > 0
        torch.testing.assert_close(summed, gradient, rtol=1e-4, atol=2e-6 * float(gradient.abs().max()))


def test_shares_are_even_and_hold_every_image_once() -> None:
    assert shares(6, 4) == [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 6)]
    assert shares(2, 4) == [slice(0, 1), slice(1, 2)]
    assert shares(5, 1) == [slice(0, 5)]


def test_more_parts_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate is 3 and processes is 2, expected a product of at most"):
        parse_params({"train": {"batch_size": 4, "accumulate": 3, "processes": 2}})


def test_auto_is_bfloat16_on_gpus_that_have_it() -> None:
    assert precision_of("auto", "cuda", has_bfloat16=True) == torch.bfloat16
    assert precision_of("auto", "cuda", has_bfloat16=False) == torch.float32
    assert precision_of("auto", "cpu", has_bfloat16=True) == torch.float32
    assert precision_of("float16", "cpu", has_bfloat16=False) == torch.float16


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_and_trains(
    case: ModuleType, backbone: Backbone, adapter: Adapter, samples: list[Sample], precision: str
) -> None:
    options = case.OPTIONS.model_copy(update={"epochs": 2})
    curves = {}
    for name in ("float32", precision):
        result = train_module(
            backbone,
            adapter,
            PrefixCache(None, backbone),
            samples,
            options.model_copy(update={"precision": name}),
            seed=3,
        )
        assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in result.tensors.values())
        curves[name] = [entry["total"] for entry in result.curve]
    assert curves[precision] != curves["float32"]
    assert curves[precision] == pytest.approx(curves["float32"], rel=0.03)


@pytest.mark.parametrize("kind", ["lora", "hq_decoder"])
def test_other_adapters_train_in_bfloat16(
    case: ModuleType, backbone: Backbone, samples: list[Sample], kind: str
) -> None:
    options = case.OPTIONS.model_copy(update={"epochs": 1, "precision": "bfloat16"})
    adapter = build_adapter(kind, backbone.site)
    cache = PrefixCache(None, backbone, plan=adapter.plan)
    result = train_module(backbone, adapter, cache, samples[:4], options, seed=3)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.tensors.values())


class TooLarge:
    """An adapter whose pass needs more memory than a GPU has for more than one image."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def hooks(self, tensors: ModuleTensors, prompts: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return self._adapter.hooks(tensors, prompts)


def test_memory_that_ends_is_said_with_what_helps(
    case: ModuleType, backbone: Backbone, adapter: Adapter, samples: list[Sample]
) -> None:
    def train(accumulate: int) -> Any:
        options = case.OPTIONS.model_copy(update={"epochs": 1, "accumulate": accumulate})
        large: Any = TooLarge(adapter)
        return train_module(backbone, large, PrefixCache(None, backbone), samples, options, seed=3)

    with pytest.raises(TrainingError, match=r"too small for 2 image\(s\) at a time .*batch_size 4, train.accumulate 2"):
        train(2)
    with pytest.raises(TrainingError) as caught:
        train(1)
    assert "train.accumulate: 2" in caught.value.hint and "batch_size" in caught.value.hint
    assert len(train(4).curve) == 1
