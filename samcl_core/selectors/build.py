"""From parameters, states and files to selectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samcl_core.config import SelectorParams
from samcl_core.errors import BankError, IntegrityError
from samcl_core.selectors.base import Selector
from samcl_core.selectors.buffers import Buffers
from samcl_core.selectors.choosing import check_classes
from samcl_core.selectors.gaussian import GaussianSelector, fit_gaussian
from samcl_core.selectors.mlp import MlpSelector, fit_mlp
from samcl_core.selectors.plain import PlainSelector
from samcl_core.selectors.statistics import Statistics

__all__ = ["SelectorState", "empty_state", "fit_selector", "fit_state", "load_selector", "load_state"]

SelectorState = Buffers | Statistics
"""What the next fit needs of the classes so far."""


def empty_state(params: SelectorParams) -> SelectorState:
    """The state before the first class."""
    if params.kind == "gaussian":
        return Statistics(params.novelty_quantile)
    return Buffers(params.buffer_size)


def fit_state(state: SelectorState, params: SelectorParams, seed: int) -> Selector:
    """The selector of everything in ``state``; answers plain to everything while no class has a module.

    Raises:
        BankError: ``state`` was kept for another kind of selector than ``params`` asks for.
    """
    if state.kind != params.kind:
        raise BankError(
            f"the bank keeps what a {state.kind!r} selector needs, params.yaml asks for {params.kind!r}",
            hint="dvc repro builds all banks again with the new kind, starting at banks/base",
        )
    if not state.domains:
        return PlainSelector()
    if isinstance(state, Statistics):
        return fit_gaussian(state, has_gate=params.fallback != "never")
    learnt = {name: state.classes[name] for name in state.domains}
    natural = {name: state.classes[name] for name in state.natural}
    return fit_mlp(params, learnt, natural, seed)


def fit_selector(
    params: SelectorParams, learnt: Mapping[str, Tensor], natural: Mapping[str, Tensor], seed: int
) -> Selector:
    """Fit a selector on embeddings.

    Args:
        params: which kind, and its options. ``fallback`` null means ``novelty``.
        learnt: name to (n, C) float embeddings of domains with a module, in the order of the bank.
        natural: the same for natural images, which get plain SAM.
        seed: of everything random; the same input gives the same bytes on one machine.

    Raises:
        BankError: a class is empty, holds values that are not finite, has another width than the others, or two
            classes have one name.
    """
    check_classes(dict(natural))
    check_classes(dict(learnt))
    state = empty_state(params)
    for name, embeddings in natural.items():
        state = state.added(name, embeddings, seed=seed, is_natural=True)
    for name, embeddings in learnt.items():
        state = state.added(name, embeddings, seed=seed)
    return fit_state(state, params, seed)


def load_selector(state_json: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Selector:
    """The selector that ``Selector.state`` came from.

    Raises:
        BankError: an unknown kind.
        IntegrityError: values or tensors are missing or do not fit together.
    """
    kind = state_json.get("kind")
    if kind == PlainSelector.kind:
        return PlainSelector()
    if kind not in (MlpSelector.kind, GaussianSelector.kind):
        raise BankError(f"selector kind is {kind!r}, expected 'plain', 'mlp' or 'gaussian'", hint="upgrade samcl")
    builder = MlpSelector.from_state if kind == MlpSelector.kind else GaussianSelector.from_state
    try:
        return builder(state_json, tensors)
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"the {kind} selector is not whole: {exc!r}") from exc


def load_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SelectorState:
    """What ``Buffers.state`` or ``Statistics.state`` wrote.

    Raises:
        BankError: an unknown kind.
        IntegrityError: values or tensors are missing, or were written in another version.
    """
    kind = values.get("kind")
    if kind not in (Buffers.kind, Statistics.kind):
        raise BankError(f"selector state is of kind {kind!r}, expected 'mlp' or 'gaussian'", hint="upgrade samcl")
    try:
        if kind == Buffers.kind:
            return Buffers.from_state(values, tensors)
        return Statistics.from_state(values, tensors)
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"the {kind} selector state is not whole: {exc!r}") from exc
