from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Draw = Callable[..., Tensor]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """``draw(k, n, seed=0, dim=16)``: n embeddings of class k, correlated, of unequal spread, with heavy tails."""

    def sample(k: int, num: int, seed: int = 0, dim: int = 16) -> Tensor:
        world = torch.Generator().manual_seed(dim)
        mix = torch.randn(dim, dim, generator=world) * torch.logspace(0, -1.5, dim)[:, None]
        means = torch.randn(12, dim, generator=world) @ mix * 4
        own = torch.Generator().manual_seed(1000 * seed + k + 1)
        noise = torch.randn(num, dim, generator=own) * (1 + 0.3 * torch.rand(num, 1, generator=own))
        return means[k] + (1 + 0.2 * k) * noise @ mix

    return sample
