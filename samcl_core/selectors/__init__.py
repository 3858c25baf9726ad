"""From an embedding to a module, or to plain SAM: ``mlp`` (the published selector), ``gaussian`` (closed form)."""

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

__all__ = [
    "PLAIN",
    "Choice",
    "GaussianSelector",
    "MlpSelector",
    "NoveltyGate",
    "PlainSelector",
    "Selector",
    "SelectorState",
    "empty_state",
    "fit_selector",
    "fit_state",
    "load_selector",
    "load_state",
]
