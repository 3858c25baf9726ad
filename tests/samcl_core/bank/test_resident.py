"""Modules on the device: what is loaded lazily, in bounded memory and in the files' own formats is what was stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import gathered
from samcl_core.backbones import AdapterSite, Prompts
from samcl_core.bank import Module, ModuleStack, pack
from samcl_core.errors import BankError

SITE = AdapterSite(dim=12, neck_dim=6, grid=4, blocks=(2, 3), windows=(2, 0))
ADAPTER = build_adapter("augmodule", SITE, rank=3)


def module(number: int, dtype: str = "float16") -> Module:
    draw = torch.Generator().manual_seed(number)
    tensors = {name: value + torch.randn(value.shape, generator=draw) for name, value in ADAPTER.fresh(number).items()}
    return Module(
        domain=f"D{number}",
        kind=ADAPTER.kind,
        parameters=ADAPTER.parameters(),
        backbone="tiny",
        backbone_sha256="0" * 64,
        split=2,
        data_digest="0" * 64,
        seed=0,
        code="test",
        metrics={},
        tensors=pack(tensors, dtype),
    )


def same(stack: ModuleStack, modules: list[Module], rows: list[int]) -> bool:
    """Whether the stack's rows are the modules' weights, bit for bit."""
    found = stack.tensors(rows)
    assert set(found) == set(ADAPTER.shapes())
    wanted = [ADAPTER.null() if row == 0 else modules[row - 1].weights for row in rows]
    return all(torch.equal(found[name], torch.stack([one[name] for one in wanted])) for name in found)


@pytest.mark.parametrize("dtypes", [["float32"], ["float16"], ["int8"], ["float16", "int8", "float32"]], ids=str)
def test_rows_are_the_weights_whatever_their_format(dtypes: list[str]) -> None:
    modules = [module(number, dtypes[number % len(dtypes)]) for number in range(4)]
    stack = ModuleStack(modules, ADAPTER)
    assert same(stack, modules, [3, 0, 1, 3])
    assert same(stack, modules, [0])
    assert same(stack, modules, [1, 2, 3, 4])


def test_a_row_takes_the_memory_of_its_format() -> None:
    weights = sum(value.numel() for value in ADAPTER.null().values())
    padding = 8 * len(ADAPTER.shapes())
    sizes = {dtype: ModuleStack([module(0, dtype)], ADAPTER).row_bytes for dtype in ("float32", "float16", "int8")}
    assert 4 * weights <= sizes["float32"] <= 4 * (weights + padding)
    assert 2 * weights <= sizes["float16"] <= 2 * (weights + padding)
    assert sizes["int8"] < sizes["float16"]


def test_modules_are_loaded_when_they_are_used() -> None:
    stack = ModuleStack([module(number) for number in range(5)], ADAPTER)
    assert (stack.num_resident, stack.capacity) == (0, 5)
    stack.tensors([0])
    assert stack.num_resident == 0
    stack.tensors([2, 4, 2])
    assert stack.num_resident == 2


def test_a_bound_keeps_the_latest_and_every_answer_right() -> None:
    modules = [module(number) for number in range(9)]
    gb = 3.5 * ModuleStack(modules[:1], ADAPTER).row_bytes / 1e9
    stack = ModuleStack(modules, ADAPTER, max_gb=gb)
    assert stack.capacity == 3
    draw = np.random.default_rng(0)
    for _ in range(60):
        rows = draw.integers(0, 10, int(draw.integers(1, 4))).tolist()
        assert same(stack, modules, rows)
        assert stack.num_resident <= 3
    before = stack.tensors([1, 2, 3])["A.weight"].clone()
    stack.tensors([1])
    stack.tensors([9])  # takes the place of 2, which was used longest ago
    assert list(stack._slots) == [3, 1, 9]
    assert same(stack, modules, list(range(10))), "a batch of more modules than there is room for"
    assert torch.equal(before, stack.tensors([1, 2, 3])["A.weight"])


def test_rows_of_a_batch_are_picked_as_from_plain_stacked_tensors() -> None:
    modules = [module(number) for number in range(3)]
    tensors = ModuleStack(modules, ADAPTER).tensors([3, 1, 0])
    prompts, index = Prompts(torch.zeros(5, 1, 2), torch.ones(5, 1).long()), torch.tensor([1, 0, 0, 2, 1])
    found = gathered(ADAPTER, tensors, prompts, index)
    expected = gathered(ADAPTER, dict(tensors), prompts, index)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    alike = gathered(ADAPTER, tensors, Prompts(torch.zeros(3, 1, 2), torch.ones(3, 1).long()), tensors.everything())
    assert all(torch.equal(alike[name], tensors[name]) for name in expected)
    alone = tensors.row(1)
    assert all(torch.equal(alone[name], modules[0].weights[name]) for name in alone)


def test_another_adapter_is_refused() -> None:
    with pytest.raises(BankError, match="module D0 has parameters"):
        ModuleStack([module(0)], build_adapter("augmodule", SITE, rank=2))
