"""From parameters, states and files to selectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from samcl_core.config import SelectorParams
from samcl_core.errors import BankError, IntegrityError, UsageError
from samcl_core.selectors.base import Selector
from samcl_core.selectors.buffers import Buffers
from samcl_core.selectors.choosing import check_classes
from samcl_core.selectors.gaussian import GaussianSelector, fit_gaussian
from samcl_core.selectors.images import ImageBuffers
from samcl_core.selectors.mlp import MlpSelector, fit_mlp
from samcl_core.selectors.plain import PlainSelector
from samcl_core.selectors.statistics import Statistics
from samcl_core.selectors.token_training import fit_tokens
from samcl_core.selectors.tokens import TokenEncoder, TokenSelector

__all__ = ["SelectorState", "empty_state", "fit_selector", "fit_state", "load_selector", "load_state"]

SelectorState = Buffers | Statistics | ImageBuffers
"""What the next fit needs of the classes so far."""

_Values = Mapping[str, Any]
_Tensors = Mapping[str, Tensor]
_SELECTORS: dict[str, Callable[[_Values, _Tensors], Selector]] = {
    MlpSelector.kind: MlpSelector.from_state,
    TokenSelector.kind: TokenSelector.from_state,
}
_STATES: dict[str, Callable[[_Values, _Tensors], SelectorState]] = {
    Buffers.kind: Buffers.from_state,
    Statistics.kind: Statistics.from_state,
    ImageBuffers.kind: ImageBuffers.from_state,
}


def empty_state(params: SelectorParams) -> SelectorState:
    """The state before the first class."""
    if params.kind == "gaussian":
        return Statistics(params.novelty_quantile)
    if params.kind == "tokens":
        return ImageBuffers(params.tokens.buffer_size)
    return Buffers(params.buffer_size)


def fit_state(state: SelectorState, params: SelectorParams, seed: int, encoder: TokenEncoder | None = None) -> Selector:
    """The selector of everything in ``state``; answers plain to everything while no class has a module.

    Args:
        state: of all classes.
        params: options of the selector.
        seed: of everything random.
        encoder: what the kind ``tokens`` is trained through; the other kinds need none.

    Raises:
        BankError: ``state`` was kept for another kind of selector than ``params`` asks for.
        UsageError: the kind is ``tokens``, and there is no encoder.
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
    if isinstance(state, ImageBuffers):
        if encoder is None:
            raise UsageError("a selector of kind 'tokens' is trained through a backbone, found no encoder")
        return fit_tokens(
            state, encoder, params.tokens, seed, None if params.fallback == "never" else params.novelty_quantile
        )
    learnt = {name: state.classes[name] for name in state.domains}
    natural = {name: state.classes[name] for name in state.natural}
    return fit_mlp(params, learnt, natural, seed)


def fit_selector(
    params: SelectorParams, learnt: Mapping[str, Tensor], natural: Mapping[str, Tensor], seed: int
) -> Selector:
    """Fit a selector on embeddings; ``fit_token_selector`` fits the kind ``tokens`` on images.

    Args:
        params: ``mlp`` or ``gaussian``, and the options. ``fallback`` null means ``novelty``.
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


def load_selector(
    state_json: Mapping[str, Any], tensors: Mapping[str, Tensor], state: SelectorState | None = None
) -> Selector:
    """The selector that ``Selector.state`` came from.

    Args:
        state_json: the JSON values.
        tensors: the tensors.
        state: what is kept for the next fit. The kind ``gaussian`` has no tensors of its own and reads its classes
            there; there may be more of them than the selector knows.

    Raises:
        BankError: an unknown kind.
        IntegrityError: values or tensors are missing or do not fit together.
    """
    kind = state_json.get("kind")
    if kind == PlainSelector.kind:
        return PlainSelector()
    if kind not in (*_SELECTORS, GaussianSelector.kind):
        expected = ["plain", GaussianSelector.kind, *_SELECTORS]
        raise BankError(f"selector kind is {kind!r}, expected one of {expected}", hint="upgrade samcl")
    try:
        if kind == GaussianSelector.kind:
            return GaussianSelector.from_state(state_json, state)
        return _SELECTORS[kind](state_json, tensors)
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"the {kind} selector is not whole: {exc!r}") from exc


def load_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SelectorState:
    """What ``state`` of a selector state wrote.

    Raises:
        BankError: an unknown kind.
        IntegrityError: values or tensors are missing, or were written in another version.
    """
    kind = values.get("kind")
    if kind not in _STATES:
        raise BankError(f"selector state is of kind {kind!r}, expected one of {list(_STATES)}", hint="upgrade samcl")
    try:
        return _STATES[kind](values, tensors)
    except (KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(f"the {kind} selector state is not whole: {exc!r}") from exc
