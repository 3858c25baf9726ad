"""SLoRA: one way down for all blocks, and the AugModule's arithmetic without its prompt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from samcl_core.adapters import build_adapter
from samcl_core.backbones import AdapterSite, Prompts

SITE = AdapterSite(8, None, 6, (3, 4, 5), (3, 0, 4))
PROMPTS = Prompts(torch.tensor([[[300.0, 700.0]]]), torch.tensor([[1]]))


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = build_adapter("slora", SITE, rank=4).shapes()
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_sizes() -> None:
    site = AdapterSite(768, 256, 64, (7, 8, 9, 10, 11), (14, 0, 14, 14, 0))
    shapes = build_adapter("slora", site).shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 50_030
    assert [name for name in shapes if name.startswith("A")] == ["A.weight", "A.bias"]


def test_the_formula_in_every_block() -> None:
    tensors, adapter = random_tensors(1), build_adapter("slora", SITE, rank=4)
    hooks = adapter.hooks(tensors, PROMPTS)
    for position, (block, windows, side) in enumerate(((3, 4, 3), (4, 1, 6), (5, 4, 4))):
        draw = torch.Generator().manual_seed(block)
        x, out = (torch.randn(windows, side, side, 8, generator=draw) for _ in range(2))
        low = x @ tensors["A.weight"].T + tensors["A.bias"]
        scale, shift = tensors[f"norm_{position:03d}.weight"], tensors[f"norm_{position:03d}.bias"]
        low = F.layer_norm(low, [4], scale, shift, 1e-5)
        expected = out + low @ tensors[f"B_{position:03d}.weight"].T + tensors[f"B_{position:03d}.bias"]
        torch.testing.assert_close(hooks.attention(block, x, out), expected)


def test_a_is_shared_and_b_is_not() -> None:
    adapter, tensors = build_adapter("slora", SITE, rank=4), random_tensors(1)
    x = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0))

    def changed_blocks(name: str) -> list[int]:
        other = {**tensors, name: tensors[name] + torch.linspace(0, 1, tensors[name].numel()).view_as(tensors[name])}
        before, after = adapter.hooks(tensors, PROMPTS), adapter.hooks(other, PROMPTS)
        return [b for b in SITE.blocks if not torch.equal(before.attention(b, x, x), after.attention(b, x, x))]

    assert changed_blocks("A.weight") == [3, 4, 5]
    assert changed_blocks("B_001.weight") == [4]
    assert changed_blocks("norm_002.weight") == [5]
