from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.backbones.base import AdapterSite
from samcl_core.bank import Bank, Module
from samcl_core.config import SelectorParams
from samcl_core.strategies import base_bank, extend_bank

SITE = AdapterSite(dim=16, neck_dim=8, grid=4, blocks=(2, 3), windows=(2, 0))
SHA256 = "ab" * 32
QUICK = SelectorParams(epochs=1, min_steps=0)

MakeModule = Callable[..., Module]
MakeBank = Callable[..., Bank]


def embeddings(k: int, num: int = 12) -> Tensor:
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(k)) + 3 * k


@pytest.fixture
def make_module() -> MakeModule:
    """``make_module(domain, seed=0, **changes)``: a module of a tiny AugModule with random tensors."""

    def make(domain: str = "Kvasir", seed: int = 0, **changes: Any) -> Module:
        adapter = build_adapter("augmodule", changes.pop("site", SITE), rank=changes.pop("rank", 2))
        generator = torch.Generator().manual_seed(seed)
        values: dict[str, Any] = {
            "domain": domain,
            "kind": adapter.kind,
            "parameters": adapter.parameters(),
            "backbone": "tiny",
            "backbone_sha256": SHA256,
            "split": 2,
            "data_digest": "cd" * 32,
            "seed": seed,
            "code": "0.1.0",
            "metrics": {"num_train": 12, "total": 0.25},
            "tensors": {name: torch.randn(shape, generator=generator) for name, shape in adapter.shapes().items()},
        }
        return Module(**{**values, **changes})

    return make


@pytest.fixture
def make_bank(make_module: MakeModule) -> MakeBank:
    """``make_bank("a", "b", params=...)``: a bank of these domains after one natural class."""

    def make(*domains: str, params: SelectorParams = QUICK) -> Bank:
        bank = base_bank("tiny", SHA256, {"nature": embeddings(9)}, params, 0)
        for k, domain in enumerate(domains):
            bank = extend_bank(bank, make_module(domain, seed=k), embeddings(k), params, 0)
        return bank

    return make
