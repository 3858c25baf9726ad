"""The strategy of SAMCL: one module per domain in a bank, nothing learnt earlier is ever touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samcl_core.bank import Bank, Module
from samcl_core.config import SelectorParams
from samcl_core.errors import BackboneMismatch, BankError
from samcl_core.selectors import TokenEncoder, empty_state, fit_state

__all__ = ["base_bank", "extend_bank"]


def base_bank(
    backbone_name: str,
    backbone_sha256: str,
    natural: Mapping[str, Tensor],
    params: SelectorParams,
    seed: int,
    *,
    lineage: Mapping[str, Any] | None = None,
) -> Bank:
    """The bank before the first domain: plain SAM for everything, and what it knows of natural images.

    Args:
        backbone_name: the frozen model.
        backbone_sha256: digest of its checkpoint.
        natural: name to (n, C) embeddings of natural images, which shall keep getting plain SAM; may be empty. For the
            selector ``tokens`` (n, S, S, 3) uint8 images, squashed to the backbone's square.
        params: which selector.
        seed: of everything random.
        lineage: where the bank comes from (JSON values).

    Raises:
        BankError: embeddings are empty, not finite or of different widths.
    """
    state = empty_state(params)
    for name, embeddings in natural.items():
        state = state.added(name, embeddings, seed=seed, is_natural=True)
    return Bank.empty(backbone_name, backbone_sha256, fit_state(state, params, seed), state, lineage)


def extend_bank(
    bank: Bank,
    module: Module,
    embeddings: Tensor,
    params: SelectorParams,
    seed: int,
    *,
    fit: bool = True,
    encoder: TokenEncoder | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Bank:
    """``bank`` with one module more and the selector fitted again. Earlier modules keep their bytes.

    What a fit needs is kept domain by domain, and a fit starts from nothing else: without the fits between, the last
    bank is the same.

    Args:
        bank: the bank before; it stays as it is.
        module: of the new domain.
        embeddings: (n, C) selector embeddings of the new domain's training images; for the selector ``tokens``
            (n, S, S, 3) uint8 images, squashed to the backbone's square.
        params: which selector.
        seed: of everything random.
        fit: False inside a back-fill: the selector stays as it is, and knows the domain from the next fit on.
        encoder: what the selector ``tokens`` is trained through; the others need none.
        lineage: where the new bank comes from (JSON values).

    Raises:
        BackboneMismatch: the module was trained on another backbone than the bank's, or ``encoder`` is another one's.
        BankError: the domain is already there, the adapter is another one, the embeddings do not fit, or the bank does
            not have what a new selector fit needs (published banks come without it).
    """
    if bank.state is None:
        raise BankError(
            f"this bank cannot grow: it has no stored embeddings of {', '.join(bank.names) or 'its classes'}",
            hint="train the domains in a workspace (samcl stream), or use the bank as it is",
        )
    if module.domain in bank.names:
        raise BankError(f"the bank already has a module for {module.domain!r}; it holds {list(bank.names)}")
    if encoder is not None and encoder.backbone.sha256 != bank.backbone_sha256:
        raise BackboneMismatch(
            f"tokens would be trained through {encoder.backbone.name} with sha256 {encoder.backbone.sha256}, "
            f"the bank is for {bank.backbone} with sha256 {bank.backbone_sha256}"
        )
    state = bank.state.added(module.domain, embeddings, seed=seed)
    selector = fit_state(state, params, seed, encoder) if fit else bank.selector
    return bank.with_module(module, selector, state, lineage)
