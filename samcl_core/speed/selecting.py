"""Fitting the selector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from samcl_core.config import SelectorParams
from samcl_core.selectors import Selector, SelectorState, empty_state, fit_state
from samcl_core.selectors.mlp import SelectorMlp
from samcl_core.speed.cases import Arms, Case, Setup
from samcl_core.speed.ground import domain_names
from samcl_core.speed.published import train_selector

__all__ = ["selector_arrival_case", "selector_fit_case"]

_BASELINE = "as published: train the MLP on the stored embeddings of all domains, 25 epochs"


def selector_fit_case(num_domains: int = 6, dim: int = 768) -> Case:
    """Fit the default selector on what a bank keeps of its domains, against the published one on what that keeps.

    Both arms return the selector.
    """
    title = f"fit the gaussian selector of {num_domains} domains, width {dim} (size: embeddings a domain)"
    arms, targets = partial(_arms, num_domains, dim, 0), {"cpu": 100.0}
    return Case("selector-fit", title, _BASELINE, arms, targets, ("cpu",), repeats=3)


def selector_arrival_case(num_domains: int = 6, dim: int = 768) -> Case:
    """The same, and what our selector keeps of the last domain is computed from its embeddings before."""
    title = f"take in the embeddings of domain {num_domains} and fit the gaussian selector (size: embeddings a domain)"
    arms = partial(_arms, num_domains, dim, 1)
    return Case("selector-arrival", title, _BASELINE, arms, groups=("cpu",), repeats=3)


def _arms(num_domains: int, dim: int, num_new: int, setup: Setup) -> Arms:
    count = setup.size or 300
    rows = _embeddings(num_domains, count, dim)
    names = domain_names(num_domains)
    flat, labels = rows.flatten(0, 1), torch.arange(num_domains).repeat_interleave(count)
    params = SelectorParams(kind="gaussian")
    known = num_domains - num_new
    kept = _added(empty_state(params), names[:known], rows[:known])

    def ours() -> Selector:
        return fit_state(_added(kept, names[known:], rows[known:]), params, 0)

    def baseline() -> SelectorMlp:
        return train_selector(flat, labels, num_domains, 0)

    return Arms(baseline, ours, {"domains": num_domains, "embeddings": count, "dim": dim})


def _added(state: SelectorState, names: Sequence[str], rows: Tensor) -> SelectorState:
    for name, embeddings in zip(names, rows, strict=True):
        state = state.added(name, embeddings, seed=0)
    return state


def _embeddings(num_domains: int, count: int, dim: int) -> Tensor:
    """(domains, count, dim) normal clouds with one covariance, apart from each other."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(dim, dim, generator=generator) / dim**0.5
    clouds = torch.randn(num_domains, count, dim, generator=generator) @ shape
    apart: Tensor = clouds + torch.randn(num_domains, 1, dim, generator=generator)
    return apart
