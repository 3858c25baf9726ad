"""Chunked attention with decomposed relative positions against the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samcl_core.backbones import attention
from samcl_core.backbones.attention import joined_attention, relative_attention


def _plain(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """``add_decomposed_rel_pos`` of the official package, and the softmax around it."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    grid = scores.unflatten(-1, (by_row.shape[-1], by_column.shape[-1]))
    scores = (grid + by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
    return scores.softmax(-1) @ v


def _parts(batch: int, heads: int, height: int, width: int, dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (dim, dim, dim, height, width)
    return [torch.randn(batch, heads, height * width, size, generator=generator).requires_grad_() for size in sizes]


@pytest.mark.parametrize("chunk", [1, 35 * 35, 35 * 40, 1 << 20])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_chunks_give_values_and_gradients_of_the_whole(chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a chunk is a part of one head's queries or several heads, and whether weights are kept or not."""
    monkeypatch.setattr(attention, "_CPU_CHUNK", chunk)
    monkeypatch.setattr(attention, "_KEPT", kept)
    ours, plain = (_parts(2, 3, 5, 7, 8) for _ in range(2))
    grad = torch.randn(2, 3, 35, 8, generator=torch.Generator().manual_seed(1))
    found, wanted = relative_attention(*ours), _plain(*plain)
    found.backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=3e-6, rtol=1e-5)


def test_gradients_by_finite_differences() -> None:
    """In double precision, on a grid that is not square."""
    parts = [part.detach().double().requires_grad_() for part in _parts(1, 2, 2, 3, 4)]
    assert torch.autograd.gradcheck(relative_attention, parts)


def test_the_bias_may_stand_in_the_product() -> None:
    """What the fused kernels of a GPU are given is the same attention, also where widths are no multiple of 8."""
    for height, width, dim in ((5, 7, 8), (8, 8, 16), (3, 2, 5)):
        parts = _parts(2, 2, height, width, dim)
        torch.testing.assert_close(joined_attention(*parts), _plain(*parts), atol=1e-5, rtol=1e-5)


def test_no_matrix_of_all_scores_is_held() -> None:
    """The graph of one attention keeps its inputs and nothing of the size of (tokens x tokens)."""
    parts = _parts(1, 4, 48, 48, 8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        relative_attention(*parts)
    assert max(sizes) == max(part.numel() for part in parts) < 48**4
    small = _parts(1, 2, 4, 4, 8)
    sizes.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        relative_attention(*small)
    assert 2 * 16**2 in sizes
