"""Chunked attention with decomposed relative positions against the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samcl_core.backbones import attention, blocked
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


@pytest.mark.parametrize("side", [1, 7, 16, 35, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_give_values_and_gradients_of_the_whole(
    side: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one query and one row of keys, blocks that do not divide the tokens, and one block for all of them."""
    monkeypatch.setattr(attention, "_MANY", 1)
    monkeypatch.setattr(blocked, "_SIDE", side)
    ours, plain = (_parts(2, 3, 5, 7, 8) for _ in range(2))
    grad = torch.randn(2, 3, 35, 8, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, wanted = relative_attention(*ours), _plain(*plain)
        found.backward(grad)
    finally:
        torch.set_num_threads(before)
    wanted.backward(grad)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=3e-6, rtol=1e-5)


def test_blocks_with_scores_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of scores of hundreds overflow; only their differences count, also where the largest comes last."""
    monkeypatch.setattr(attention, "_MANY", 1)
    monkeypatch.setattr(blocked, "_SIDE", 7)
    q, k, v, by_row, by_column = (part.detach().double() for part in _parts(1, 2, 5, 7, 8))
    by_row = by_row + torch.linspace(-2000, 2000, 5)
    torch.testing.assert_close(relative_attention(q, k, v, by_row, by_column), _plain(q, k, v, by_row, by_column))


def test_blocks_of_half_precision_add_up_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of the same numbers in single precision, rounded once."""
    monkeypatch.setattr(attention, "_MANY", 1)
    monkeypatch.setattr(blocked, "_SIDE", 7)
    parts = [part.detach().bfloat16() for part in _parts(1, 2, 5, 7, 8)]
    found = relative_attention(*parts)
    torch.testing.assert_close(found, relative_attention(*(part.float() for part in parts)).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("many", [1, 2048])
def test_gradients_by_finite_differences(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision, on a grid that is not square."""
    monkeypatch.setattr(attention, "_MANY", many)
    parts = [part.detach().double().requires_grad_() for part in _parts(1, 2, 2, 3, 4)]
    assert torch.autograd.gradcheck(relative_attention, parts)


def test_the_bias_may_stand_in_the_product() -> None:
    """What the fused kernels of a GPU are given is the same attention, also where widths are no multiple of 8."""
    for height, width, dim in ((5, 7, 8), (8, 8, 16), (3, 2, 5)):
        parts = _parts(2, 2, height, width, dim)
        torch.testing.assert_close(joined_attention(*parts), _plain(*parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("many", [1, 4096])
def test_no_matrix_of_all_scores_is_held(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of one attention keeps its inputs and nothing of the size of (tokens x tokens)."""
    monkeypatch.setattr(attention, "_MANY", many)
    parts = _parts(1, 4, 48, 48, 8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        relative_attention(*parts)
    assert max(sizes) == max(part.numel() for part in parts) < 48**4
    small = _parts(1, 2, 4, 4, 8)
    sizes.clear()
    monkeypatch.undo()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        relative_attention(*small)
    assert 2 * 16**2 in sizes
