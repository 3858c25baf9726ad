"""What a benchmark compares, by name: ``NAME`` or ``NAME@ADAPTER``, and names of groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from samcl_core.adapters import registered_adapters
from samcl_core.errors import UsageError
from samcl_core.strategies.base import registered_strategies

__all__ = ["GROUPS", "Method", "expand_methods", "known_methods", "parse_method", "titles_of"]

AUGMODULE, HQ_DECODER = "augmodule", "hq_decoder"

ZERO_SHOT, SINGLE, PROMPTS, POOL = "zero-shot", "single adapter", "prompt pool", "adapter pool"
FAMILIES = (ZERO_SHOT, SINGLE, PROMPTS, POOL)
"""Headings of the tables' rows, in their order."""

_TITLES = {
    "zero_shot": "zero-shot",
    "oracle": "one module a domain, oracle's choice",
    "bank": "bank, gaussian selector",
    "bank_gaussian": "bank, default profile, gaussian selector",
    "bank_mlp": "bank, default profile, MLP selector",
    "bank_reference": "bank, reference profile, MLP selector",
    "naive": "one module, trained in sequence",
    "joint": "one module, trained jointly",
    "moda": "MoDA, tokens in the prefix's own pass",
    "moda_two_pass": "MoDA, tokens in a second pass",
    "moda_frozen": "MoDA, random tokens",
}
_SELECTORS = {"bank": "gaussian", "bank_gaussian": "gaussian", "bank_mlp": "mlp", "bank_reference": "mlp"}
_TOKENS: dict[str, dict[str, Any]] = {
    "moda": {"form": "one_pass"},
    "moda_two_pass": {"form": "two_pass"},
    "moda_frozen": {"form": "one_pass", "frozen": True},
}
_SAMCL = ("zero_shot", "naive", "joint", "oracle", "bank_gaussian", "bank_mlp", "bank_reference")
_COSAM_SINGLE = ("lwf", "ewc", "er", "der", "o_lora")
_COSAM_PROMPTS = ("l2p", "dualprompt", "coda_prompt")
_COSAM_POOL = ("oracle@hq_decoder", "bank@hq_decoder", *_TOKENS)
_POOL = (*_SAMCL[3:], "bank", *_TOKENS)
_TRAINED = ("naive", *_COSAM_SINGLE, "joint", *_COSAM_PROMPTS)
_ROWS = ("zero_shot", *_TRAINED, *_POOL)
"""Order of the rows inside a family; others follow by name."""

GROUPS = ("samcl", "cosam", "adapters", "all")
"""The published SAMCL table, CoSAM's, a bank of each kind of adapter, and all of them."""


@dataclass(frozen=True)
class Method:
    """One way to keep knowledge of several domains, measured as a whole.

    Attributes:
        name: unique; names the cells' folder. The adapter is left out of it where it is the method's own.
        title: for tables.
        family: heading of its row.
        adapter: kind of module.
        strategy: registered strategy that is trained in sequence; empty where modules of single domains are chosen.
        selector: how a module is chosen (``gaussian``, ``mlp``, ``tokens``); empty where nothing is chosen.
        profile: ``default`` or ``reference``.
        tokens: options of the selector ``tokens``.
    """

    name: str
    title: str
    family: str
    adapter: str = AUGMODULE
    strategy: str = ""
    selector: str = ""
    profile: str = "default"
    tokens: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def has_modules(self) -> bool:
        """Whether it is looked up in the scores of one module a domain."""
        return self.family == POOL

    @property
    def variant(self) -> str:
        """Names the folder of the modules and scores that it shares with others."""
        return self.profile if self.adapter == AUGMODULE else self.adapter

    @property
    def is_offline(self) -> bool:
        """Whether it learns everything at once."""
        return bool(self.strategy) and registered_strategies()[self.strategy].is_offline  # type: ignore[attr-defined]

    @property
    def is_orderless(self) -> bool:
        """Whether the order of arrival cannot change it; it is measured under one order alone."""
        return self.family == ZERO_SHOT or self.is_offline


def parse_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        UsageError: the method or its adapter is unknown, or they do not go together.
    """
    base, at, given = name.partition("@")
    strategies = registered_strategies()
    if base not in known_methods():
        raise UsageError(f"strategy {name} is unknown, expected some of {_listing()}")
    if at and given not in registered_adapters():
        raise UsageError(f"adapter of {name} is unknown, expected one of {', '.join(registered_adapters())}")
    own, is_bound = _own_adapter(base)
    if given and is_bound and given != own:
        raise UsageError(f"strategy {base} is made for adapter {own}, found {name}")
    adapter = given or own
    if base == "bank" and adapter == AUGMODULE:
        base = "bank_gaussian"
    is_own = adapter == own and base in _TITLES
    shown, tail = base if adapter == own else f"{base}@{adapter}", "" if is_own else f", {adapter}"
    if base == "zero_shot":
        return Method(base, _TITLES[base], ZERO_SHOT)
    if base in _POOL:
        profile = "reference" if base == "bank_reference" else "default"
        selector, tokens = _SELECTORS.get(base, ""), _TOKENS.get(base, {})
        selector = "tokens" if tokens else selector
        return Method(shown, _TITLES[base] + tail, POOL, adapter, "", selector, profile, tokens)
    title = _TITLES.get(base) or str(strategies[base].title)  # type: ignore[attr-defined]
    return Method(shown, title + tail, PROMPTS if base in _COSAM_PROMPTS else SINGLE, adapter, strategy=base)


def _own_adapter(base: str) -> tuple[str, bool]:
    """The kind of adapter of a method whose name does not say one, and whether it goes with no other."""
    if base in ("zero_shot", "bank_gaussian", "bank_mlp", "bank_reference"):
        return AUGMODULE, True
    if base in ("oracle", "bank", "naive", "joint"):
        return AUGMODULE, False
    made_for = None if base in _TOKENS else registered_strategies()[base].adapter  # type: ignore[attr-defined]
    return (str(made_for["kind"]), True) if made_for else (HQ_DECODER, False)


def _listing() -> str:
    return f"{', '.join(known_methods())}, each also NAME@ADAPTER, or {', '.join(GROUPS)}"


def known_methods() -> tuple[str, ...]:
    """Names without adapters, in the order of the tables' rows."""
    registered = registered_strategies()
    published = [name for name in _ROWS if name in registered or name not in _TRAINED]
    return (*published, *sorted(set(registered) - {*_ROWS}))


def expand_methods(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of names and groups, once each, in the order of the tables' rows.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    wanted = [member for name in names for member in (_members(name) if name in GROUPS else (name,))]
    if not wanted:
        raise UsageError(f"no strategy is given, expected some of {_listing()}")
    found = {method.name: method for method in map(parse_method, wanted)}
    return tuple(sorted(found.values(), key=_rank))


def _members(group: str) -> tuple[str, ...]:
    adapters = tuple(f"bank@{kind}" for kind in registered_adapters())
    trained = [name for name in (*_COSAM_SINGLE, *_COSAM_PROMPTS) if name in registered_strategies()]
    cosam = ("zero_shot", f"naive@{HQ_DECODER}", f"joint@{HQ_DECODER}", *trained, *_COSAM_POOL)
    members = {"samcl": _SAMCL, "cosam": cosam, "adapters": adapters}
    others = tuple(name for name in known_methods() if name not in _ROWS)
    return members.get(group) or (*_SAMCL, *cosam, *others, *adapters)


def _rank(method: Method) -> tuple[int, int, str]:
    base = method.name.partition("@")[0]
    return FAMILIES.index(method.family), _ROWS.index(base) if base in _ROWS else len(_ROWS), method.name


def titles_of(names: Sequence[str]) -> dict[str, str]:
    """Name to title of some methods, in the order of the tables' rows."""
    return {method.name: method.title for method in expand_methods(names)} if names else {}
