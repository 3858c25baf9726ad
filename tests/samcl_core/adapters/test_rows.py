"""Layers whose weights are plain tensors: one set for a batch, or one row for each sample."""

from __future__ import annotations

import pytest
import torch

from samcl_core.adapters.rows import add_linear, linear


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("is_stacked", [False, True], ids=["shared", "stacked"])
@pytest.mark.parametrize("is_transposed", [False, True], ids=["tokens", "channels first"])
def test_add_linear_is_the_sum_with_and_without_gradients(is_stacked: bool, is_transposed: bool) -> None:
    lead = (3,) if is_stacked else ()
    x, weight, bias = drawn(3, 7, 2), drawn(*lead, 5, 2), drawn(*lead, 5)
    base = drawn(3, 5, 7).transpose(1, 2) if is_transposed else drawn(3, 7, 5)
    kernels = weight if is_stacked else weight.expand(3, -1, -1)
    expected = base + torch.einsum("bti,boi->bto", x, kernels) + (bias[:, None] if is_stacked else bias)
    before = base.clone()
    recorded = add_linear(base, x, weight.requires_grad_(), bias)
    torch.testing.assert_close(recorded, expected)
    assert torch.equal(base, before)
    assert recorded.requires_grad
    with torch.no_grad():
        found = add_linear(base, x, weight, bias)
    torch.testing.assert_close(found, expected)
    assert found.stride() == base.stride()


def test_add_linear_of_zeros_changes_no_bit() -> None:
    base, x = drawn(2, 9, 16), drawn(2, 9, 3)
    with torch.no_grad():
        for lead in ((), (2,)):
            found = add_linear(base.clone(), x, torch.zeros(*lead, 16, 3), torch.zeros(*lead, 16))
            assert torch.equal(found, base)


def test_add_linear_takes_mixed_dtypes_like_the_sum() -> None:
    base, x = drawn(2, 9, 16).bfloat16(), drawn(2, 9, 3)
    weight, bias = drawn(16, 3), drawn(16)
    with torch.no_grad():
        assert torch.equal(add_linear(base, x, weight, bias), base + linear(x, weight, bias))
        with torch.autocast("cpu", torch.bfloat16):
            found = add_linear(base.float(), x, weight, bias)
    assert found.dtype == torch.float32
