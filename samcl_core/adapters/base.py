"""What every adapter is: named tensors, and what they do inside the frozen suffix. Registered once by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from samcl_core.backbones.base import AdapterSite, Prompts, SuffixHooks
from samcl_core.errors import ConfigError

__all__ = ["Adapter", "ModuleTensors", "build_adapter", "register_adapter", "registered_adapters"]

ModuleTensors = dict[str, Tensor]
"""A module's trained tensors by name. Stacked modules have one leading dimension more: (M, ...)."""


class Adapter(Protocol):
    """One kind of module on one backbone. It holds settings, never weights: weights are plain named tensors.

    Attributes:
        kind: registered name, written into ``module.json``.
        site: where it acts.
    """

    kind: str
    site: AdapterSite

    def parameters(self) -> dict[str, Any]:
        """The settings that ``module.json`` must hold to build this adapter again (JSON values)."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every trained tensor, in a fixed order."""
        ...

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module, same seed same bytes; such a module changes nothing."""
        ...

    def null(self) -> ModuleTensors:
        """float32 tensors that change nothing, bit for bit: the plain backbone as a module."""
        ...

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> SuffixHooks:
        """What modules do to one batch.

        Args:
            tensors: one module's tensors, or M modules' stacked tensors when ``index`` is given.
            prompts: the batch's prompts (B rows), on the device of ``tensors``.
            index: (B,) int64, the row of ``tensors`` for each sample; ``None`` applies the one module to all.
        """
        ...


Builder = Callable[..., Adapter]
_BUILDERS: dict[str, Builder] = {}


def register_adapter(kind: str, builder: Builder) -> None:
    """Make ``kind`` known. ``builder(site, **parameters)`` returns the adapter.

    Raises:
        ValueError: ``kind`` is already registered with another builder.
    """
    if _BUILDERS.get(kind, builder) is not builder:
        raise ValueError(f"adapter kind {kind!r} is already registered by {_BUILDERS[kind]!r}")
    _BUILDERS[kind] = builder


def registered_adapters() -> tuple[str, ...]:
    """The registered kinds, sorted."""
    return tuple(sorted(_BUILDERS))


def build_adapter(kind: str, site: AdapterSite, **parameters: Any) -> Adapter:
    """The adapter ``kind`` for ``site``.

    Raises:
        ConfigError: the kind is unknown, or its parameters are not accepted.
    """
    if kind not in _BUILDERS:
        raise ConfigError("adapter", [f"kind is {kind!r}, expected one of {list(registered_adapters())}"])
    try:
        return _BUILDERS[kind](site, **parameters)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"adapter {kind}", [str(exc)]) from exc
