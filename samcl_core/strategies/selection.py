"""The bank as a strategy: one module for each domain, never touched again, and a selector that picks for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from pydantic import ValidationError
from torch import Tensor

import samcl_core
from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import Prefix, Prompts, SuffixHooks
from samcl_core.bank import Bank, Module, pack, stack_modules
from samcl_core.config import PROFILES, SelectorParams, problems_of
from samcl_core.errors import IntegrityError
from samcl_core.files import digest_json
from samcl_core.selectors import Selector, load_selector, load_state
from samcl_core.strategies.bank import base_bank, extend_bank
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.keeping import identity
from samcl_core.strategies.single import Choose, check_choose, check_order, on_device, trained

__all__ = ["BankSelection", "bank_of"]

_SELECTOR = "selector/"
# The kind ``tokens`` looks at images; a strategy answers from prefixes alone.
_KINDS = ("gaussian", "mlp")


@dataclass(frozen=True)
class BankSelection:
    """Wang et al., SAMCL, arXiv 2412.05012. Forgetting can come from wrong choices only: modules never change.

    Attributes:
        selector: ``gaussian`` (closed form, ours) or ``mlp`` (the paper's).
        selector_options: further options of ``params.selector``; what is not given is the default profile's.
        choose: which epoch of each domain's training is kept, ``last`` or ``best_val``.
    """

    selector: str = "gaussian"
    selector_options: Mapping[str, Any] = field(default_factory=dict)
    choose: Choose = "last"

    name: ClassVar[str] = "bank"
    title: ClassVar[str] = "bank with selection (SAMCL)"
    reference: ClassVar[str] = "Wang et al., SAMCL, arXiv 2412.05012"
    adapter: ClassVar[Mapping[str, Any] | None] = None
    is_offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choose(self.choose)
        if self.selector not in _KINDS:
            raise ValueError(f"selector is {self.selector!r}, expected one of {list(_KINDS)}")
        self.selector_params()

    def selector_params(self) -> SelectorParams:
        """The selector's options as in ``params.yaml``.

        Raises:
            ValueError: an option is unknown, or its value is not accepted.
        """
        values = {**PROFILES["default"]["selector"], **self.selector_options, "kind": self.selector}
        try:
            return SelectorParams(**values)
        except ValidationError as exc:
            raise ValueError("; ".join(problems_of(exc, "selector"))) from exc

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        """The bank with the new domain's module, and the selector fitted again; see ``Strategy``."""
        check_order(state, tasks)
        task, params = tasks[-1], self.selector_params()
        tensors = trained(context, task, f"{self.name}-{len(tasks)}-{task.name}", self.choose)
        module = _module(task, pack(tensors, context.options.module_dtype), context)
        before = _base(params, context) if state is None else bank_of(state, context)
        embeddings = context.cache.embeddings(sorted(task.train, key=lambda sample: sample.id))
        return _state_of(extend_bank(before, module, embeddings, params, context.seed))

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        """Each image's own module, all of them in one pass."""
        ready = _ready(state, context)
        rows = ready.selector.choose(prefix.embedding).index + 1
        return context.adapter.hooks(ready.stack, prompts, rows)


def bank_of(state: State, context: Context) -> Bank:
    """The bank in a state, which can be saved and served like any other.

    Raises:
        IntegrityError: parts of the state are missing.
    """
    try:
        kept = load_state(state.values["state"], state.memory)
        selector = load_selector(state.values["selector"], _under(state.model, _SELECTOR), kept)
        modules = [
            _as_module(name, _under(state.model, f"modules/{name}/"), state.values["modules"][name], context)
            for name in state.tasks
        ]
    except KeyError as exc:
        raise IntegrityError(f"the state of the bank is not whole: {exc} is missing") from exc
    return Bank(context.backbone.name, context.backbone.sha256, tuple(modules), selector, kept)


def _base(params: SelectorParams, context: Context) -> Bank:
    natural = {name: context.cache.embeddings(samples) for name, samples in context.natural.items()}
    return base_bank(context.backbone.name, context.backbone.sha256, natural, params, context.seed)


def _module(task: Task, tensors: ModuleTensors, context: Context) -> Module:
    samples = sorted(task.train, key=lambda sample: sample.id)
    facts = {
        "data_digest": digest_json(identity(samples)),
        "seed": context.seed,
        "code": samcl_core.__version__,
        "num_train": len(samples),
    }
    return _as_module(task.name, tensors, facts, context)


def _as_module(name: str, tensors: ModuleTensors, facts: Mapping[str, Any], context: Context) -> Module:
    return Module(
        domain=name,
        kind=context.adapter.kind,
        parameters=context.adapter.parameters(),
        backbone=context.backbone.name,
        backbone_sha256=context.backbone.sha256,
        split=context.backbone.site.blocks[0],
        data_digest=str(facts["data_digest"]),
        seed=int(facts["seed"]),
        code=str(facts["code"]),
        metrics={"num_train": facts["num_train"]},
        tensors=tensors,
    )


def _state_of(bank: Bank) -> State:
    assert bank.state is not None
    selector, selector_tensors = bank.selector.state()
    kept, memory = bank.state.state()
    model = {_SELECTOR + name: tensor for name, tensor in selector_tensors.items()}
    facts = {}
    for module in bank.modules:
        model |= {f"modules/{module.domain}/{name}": tensor for name, tensor in module.tensors.items()}
        numbers = {"data_digest": module.data_digest, "seed": module.seed, "code": module.code}
        facts[module.domain] = {**numbers, **module.metrics}
    values = {"selector": selector, "state": kept, "modules": facts}
    return State(bank.names, _own(model), memory=_own(memory), values=values)


@dataclass(frozen=True, eq=False)
class _Ready:
    """What a state needs to answer, on one device."""

    selector: Selector
    stack: ModuleTensors
    device: torch.device


# Derived from states that never change, so that not every batch stacks all modules again.
_READY: WeakKeyDictionary[State, _Ready] = WeakKeyDictionary()


def _ready(state: State, context: Context) -> _Ready:
    found = _READY.get(state)
    if found is None or found.device != context.backbone.device:
        bank = bank_of(state, context)
        stack = on_device(stack_modules(bank, context.adapter), context)
        found = _Ready(bank.selector.to(context.backbone.device), stack, context.backbone.device)
        _READY[state] = found
    return found


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: a safetensors file cannot hold tensors that share memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}
