"""Fitting the selector."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from samcl_core.config import SelectorParams
from samcl_core.selectors import Selector, fit_selector
from samcl_core.selectors.mlp import SelectorMlp
from samcl_core.speed.cases import Arms, Case, Setup
from samcl_core.speed.ground import domain_names
from samcl_core.speed.published import train_selector

__all__ = ["selector_fit_case"]


def selector_fit_case(num_domains: int = 6, dim: int = 768) -> Case:
    """Fit the default selector on all embeddings, against the published one. Both return the selector."""
    title = f"fit the gaussian selector, {num_domains} domains, width {dim} (size: embeddings a domain)"
    baseline = "as published: train the MLP on the same embeddings, 25 epochs"
    arms, targets = partial(_arms, num_domains, dim), {"cpu": 100.0}
    return Case("selector-fit", title, baseline, arms, targets, ("cpu",), repeats=3)


def _arms(num_domains: int, dim: int, setup: Setup) -> Arms:
    count = setup.size or 300
    rows = _embeddings(num_domains, count, dim)
    classes = dict(zip(domain_names(num_domains), rows, strict=True))
    flat, labels = rows.flatten(0, 1), torch.arange(num_domains).repeat_interleave(count)

    def ours() -> Selector:
        return fit_selector(SelectorParams(kind="gaussian"), classes, {}, 0)

    def baseline() -> SelectorMlp:
        return train_selector(flat, labels, num_domains, 0)

    return Arms(baseline, ours, {"domains": num_domains, "embeddings": count, "dim": dim})


def _embeddings(num_domains: int, count: int, dim: int) -> Tensor:
    """(domains, count, dim) normal clouds with one covariance, apart from each other."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(dim, dim, generator=generator) / dim**0.5
    clouds = torch.randn(num_domains, count, dim, generator=generator) @ shape
    apart: Tensor = clouds + torch.randn(num_domains, 1, dim, generator=generator)
    return apart
