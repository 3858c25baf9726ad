"""What every adapter is: named tensors, and what they do inside the frozen suffix. Registered once by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from samcl_core.adapters.stacked import StackedTensors
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts, SuffixHooks
from samcl_core.errors import BankError, ConfigError, PromptError

__all__ = [
    "Adapter",
    "ModuleTensors",
    "build_adapter",
    "check_tensors",
    "gathered",
    "register_adapter",
    "registered_adapters",
]

ModuleTensors = dict[str, Tensor]
"""A module's trained tensors by name. Stacked modules have one leading dimension more: (M, ...)."""


class Adapter(Protocol):
    """One kind of module on one backbone. It holds settings, never weights: weights are plain named tensors.

    Attributes:
        kind: registered name, written into ``module.json``.
        site: where it acts.
        plan: what it needs of a prefix: where the frozen part ends, and which side features.
    """

    kind: str
    site: AdapterSite
    plan: PrefixPlan

    def parameters(self) -> dict[str, Any]:
        """The settings that ``module.json`` must hold to build this adapter again (JSON values)."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every trained tensor, in a fixed order."""
        ...

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module, same seed same bytes.

        Such a module changes nothing; where the method adds tokens to an attention, it changes as little as it can.
        """
        ...

    def null(self) -> ModuleTensors:
        """float32 zeros, the plain backbone as a module: the masks are the plain ones.

        Bit for bit where the adapter adds to frozen results; within rounding where attention has to be computed by
        ``blocks.attend``.
        """
        ...

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> SuffixHooks:
        """What modules do to one batch.

        Args:
            tensors: one module's tensors, or M modules' stacked tensors when ``index`` is given.
            prompts: the batch's prompts (B rows), on the device of ``tensors``.
            index: (B,) int64, the row of ``tensors`` for each sample; ``None`` applies the one module to all.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
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


def check_tensors(adapter: Adapter, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None) -> None:
    """See that ``tensors`` are one module's, or stacked ones with an ``index`` for every prompt.

    Raises:
        BankError: tensors are missing or have other shapes than the adapter's.
        PromptError: ``index`` has another length than the prompts.
    """
    shapes = tensors.columns.shapes if isinstance(tensors, StackedTensors) else None
    for name, shape in adapter.shapes().items():
        if name not in (tensors if shapes is None else shapes):
            raise BankError(f"module tensor {name} is missing, expected shape {shape}")
        if shapes is not None:  # known without making a view of each
            found = shapes[name]
        else:
            found = tuple(tensors[name].shape if index is None else tensors[name].shape[1:])
        if found != shape:
            raise BankError(f"module tensor {name} has shape {found}, expected {shape}")
    if index is not None and index.shape != (len(prompts),):
        raise PromptError(f"index has shape {tuple(index.shape)}, expected ({len(prompts)},)")


def gathered(
    adapter: Adapter, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None
) -> Mapping[str, Tensor]:
    """The tensors of one batch: ``tensors`` as they are without ``index``, else (B, ...) rows of stacked ones.

    Raises:
        BankError: tensors are missing or have other shapes than the adapter's.
        PromptError: ``index`` has another length than the prompts.
    """
    check_tensors(adapter, tensors, prompts, index)
    if index is None:
        return tensors
    if isinstance(tensors, StackedTensors):
        return tensors.take(index)
    return {name: tensors[name].index_select(0, index) for name in adapter.shapes()}
