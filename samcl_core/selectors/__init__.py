"""From an image to a module, or to plain SAM: ``mlp`` (SAMCL's selector) and ``gaussian`` (closed form) read the
embedding of the prefix, ``tokens`` (MoDA's) the query of learnt tokens."""

from __future__ import annotations

from samcl_core.selectors.base import PLAIN, Choice, Selector
from samcl_core.selectors.build import (
    SelectorState,
    empty_state,
    fit_selector,
    fit_state,
    load_selector,
    load_state,
)
from samcl_core.selectors.gaussian import GaussianSelector
from samcl_core.selectors.mlp import MlpSelector
from samcl_core.selectors.novelty import NoveltyGate
from samcl_core.selectors.plain import PlainSelector
from samcl_core.selectors.token_training import fit_token_selector
from samcl_core.selectors.tokens import TokenEncoder, TokenSelector

__all__ = [
    "PLAIN",
    "Choice",
    "GaussianSelector",
    "MlpSelector",
    "NoveltyGate",
    "PlainSelector",
    "Selector",
    "SelectorState",
    "TokenEncoder",
    "TokenSelector",
    "empty_state",
    "fit_selector",
    "fit_state",
    "fit_token_selector",
    "load_selector",
    "load_state",
]
