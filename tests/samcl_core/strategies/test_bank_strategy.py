from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.backbones.base import AdapterSite
from samcl_core.bank import Bank, Module
from samcl_core.config import SelectorParams
from samcl_core.errors import BackboneMismatch, BankError
from samcl_core.files import digest_files
from samcl_core.strategies import base_bank, extend_bank

SHA256 = "ab" * 32
SITE = AdapterSite(dim=64, neck_dim=None, grid=4, blocks=(1,), windows=(0,))
KINDS = [SelectorParams(), SelectorParams(kind="gaussian")]


def rows(k: int, num: int = 40, seed: int = 0) -> Tensor:
    place = torch.randn(64, generator=torch.Generator().manual_seed(99 + k)) * 2
    return place + torch.randn(num, 64, generator=torch.Generator().manual_seed(1000 * seed + k))


def module(domain: str, sha256: str = SHA256) -> Module:
    adapter = build_adapter("augmodule", SITE)
    return Module(
        domain, adapter.kind, adapter.parameters(), "tiny", sha256, 1, "d", 0, "c", {}, adapter.fresh(len(domain))
    )


def stream(params: SelectorParams, *domains: str) -> Bank:
    bank = base_bank("tiny", SHA256, {"nature": rows(9)}, params, 0)
    for k, domain in enumerate(domains):
        bank = extend_bank(bank, module(domain), rows(k), params, 0)
    return bank


@pytest.mark.parametrize("params", KINDS, ids=lambda params: params.kind)
def test_base_bank_always_answers_plain(params: SelectorParams) -> None:
    for natural in ({}, {"nature": rows(9)}):
        bank = base_bank("tiny", SHA256, natural, params, 0)
        assert bank.names == () and bank.backbone_sha256 == SHA256
        assert bank.selector.choose(torch.cat([rows(0), rows(9)])).index.unique().tolist() == [-1]


@pytest.mark.parametrize("params", KINDS, ids=lambda params: params.kind)
def test_the_bank_grows_by_one_domain_at_a_time(params: SelectorParams) -> None:
    bank = base_bank("tiny", SHA256, {"nature": rows(9)}, params, 0)
    for k, domain in enumerate("abc"):
        bank = extend_bank(bank, module(domain), rows(k), params, 0, lineage={"step": k})
        assert bank.names == tuple("abc"[: k + 1]) and bank.lineage == {"step": k}
        for j in range(k + 1):
            assert (bank.selector.choose(rows(j, seed=1)).index == j).float().mean() > 0.9
        assert (bank.selector.choose(rows(9, seed=1)).index == -1).float().mean() > 0.9
        for later in range(k + 1, 3):
            assert (bank.selector.choose(rows(later, seed=1)).index == -1).float().mean() > 0.9, "fits no domain yet"


@pytest.mark.parametrize("params", KINDS, ids=lambda params: params.kind)
def test_growing_from_disk_equals_growing_in_memory(params: SelectorParams, tmp_path: Path) -> None:
    # Not in the order of the alphabet: the order of arrival must survive the disk.
    stream(params, "b", "c", "a").save(tmp_path / "three")
    grown = extend_bank(Bank.load(tmp_path / "three"), module("aa"), rows(3), params, 0)
    assert grown.names == ("b", "c", "a", "aa")
    grown.save(tmp_path / "x")
    stream(params, "b", "c", "a", "aa").save(tmp_path / "y")
    assert digest_files(tmp_path / "x") == digest_files(tmp_path / "y")


def test_the_state_stays_bounded() -> None:
    params = SelectorParams(buffer_size=7, epochs=1, min_steps=0)
    bank = extend_bank(base_bank("tiny", SHA256, {}, params, 0), module("a"), rows(0, 100), params, 0)
    assert bank.state is not None
    assert {name: len(kept) for name, kept in bank.state.state()[1].items()} == {"buffer.a": 7}


def test_what_cannot_be_added_is_refused() -> None:
    params = SelectorParams(epochs=1, min_steps=0)
    bank = stream(params, "a")
    before = bank.digest
    with pytest.raises(BankError, match="already has a module for 'a'"):
        extend_bank(bank, module("a"), rows(0), params, 0)
    with pytest.raises(BankError, match="already knows 'nature'"):
        extend_bank(bank, module("nature"), rows(0), params, 0)
    with pytest.raises(BackboneMismatch, match="module b was trained on"):
        extend_bank(bank, module("b", "00" * 32), rows(1), params, 0)
    with pytest.raises(BankError, match="width 8, expected 64"):
        extend_bank(bank, module("b"), torch.zeros(3, 8), params, 0)
    with pytest.raises(BankError, match="embeddings of b are empty"):
        extend_bank(bank, module("b"), torch.zeros(0, 64), params, 0)
    with pytest.raises(BankError, match=r"params\.yaml asks for 'gaussian'"):
        extend_bank(bank, module("b"), rows(1), SelectorParams(kind="gaussian"), 0)
    frozen = Bank(bank.backbone, bank.backbone_sha256, bank.modules, bank.selector, None)
    with pytest.raises(BankError, match="cannot grow: it has no stored embeddings of a"):
        extend_bank(frozen, module("b"), rows(1), params, 0)
    assert bank.digest == before
