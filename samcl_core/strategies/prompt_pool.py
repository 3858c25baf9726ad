"""What L2P, DualPrompt and CODA-Prompt share: prompts that each image calls for itself, by a query and keys.

A prompt is some keys and as many values that join the attention of adapted blocks. The query of an image is the frozen
prefix's selector embedding, which is there anyway. The papers take the class token that the whole frozen encoder gives
in a pass of its own; SAM's encoder has no class token, and so no image is encoded twice here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.prompt_tokens import PromptTokenHooks
from samcl_core.backbones.base import AdapterSite, Hooks, Masks, Prefix, PrefixPlan, Prompts, SuffixHooks
from samcl_core.errors import BankError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.checks import check_weight
from samcl_core.strategies.single import SingleAdapter, on_device
from samcl_core.tensors import tensor_bytes
from samcl_core.training import Batch, Extra, Forward

__all__ = [
    "PoolAdapter",
    "PoolHooks",
    "PoolPenalty",
    "PromptPool",
    "Serve",
    "by_block",
    "drawn",
    "grown",
    "similarity",
]

Serve = Callable[[Mapping[str, Tensor], Tensor], Mapping[int, Tensor]]
"""``serve(tensors, query)``: by block (2, B or 1, P, C), the keys and values for queries (B, C)."""

_STD = 0.02


def similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of (B, C) queries and (M, C) keys: (B, M)."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).mT


def by_block(blocks: Sequence[int], prompts: Tensor, gain: float) -> dict[int, Tensor]:
    """(blocks, 2, B, P, C) by block, times ``gain``."""
    return dict(zip(blocks, (prompts * gain).unbind(0), strict=True))


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> ModuleTensors:
    """float32 tensors, same seed same bytes: normal with deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * _STD for name, shape in shapes.items()}


def grown(state: State | None, model: ModuleTensors, axes: Mapping[str, int]) -> ModuleTensors:
    """``model`` with the tensors named in ``axes`` appended to those of the state along an axis."""
    if state is None:
        return model
    return {
        name: torch.cat([state.model[name], tensor], axes[name]) if name in axes else tensor
        for name, tensor in model.items()
    }


class PoolHooks(Hooks):
    """``SuffixHooks`` of one batch: additional keys and values that depend on each image's query.

    Args:
        tensors: of the pool, on the device of the prefix.
        serve: which prompts a query gets.
    """

    is_inside = True

    def __init__(self, tensors: Mapping[str, Tensor], serve: Serve) -> None:
        self._tensors = tensors
        self._serve = serve
        self._tokens = PromptTokenHooks({}, {})

    def begin(self, prefix: Prefix) -> None:
        """Look at the batch's queries.

        Raises:
            BankError: the prefix was made for another kind of adapter.
        """
        super().begin(prefix)
        served = self._serve(self._tensors, prefix.embedding)
        self._tokens = PromptTokenHooks(
            {block: pair[0] for block, pair in served.items()}, {block: pair[1] for block, pair in served.items()}
        )

    def context(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values for ``block``."""
        return self._tokens.context(block)


@dataclass(eq=False)
class PoolAdapter:
    """The part of a pool that is trained on one domain, as an ``Adapter``. It is no kind for banks.

    Attributes:
        kind: name of the strategy.
        site: where the prompts act.
        options: the strategy's settings, as JSON values.
        sizes: name to shape of every trained tensor.
        serve: which prompts a query gets; it sees ``earlier`` through its closure.
        start: tensors of a new domain from a seed.
        earlier: frozen tensors of earlier domains that the training depends on.
    """

    kind: str
    site: AdapterSite
    options: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]
    serve: Serve
    start: Callable[[int], ModuleTensors]
    earlier: ModuleTensors = field(default_factory=dict)
    plan: PrefixPlan = field(default_factory=PrefixPlan)

    def parameters(self) -> dict[str, Any]:
        """The settings, and a digest of the frozen tensors: a checkpoint of another past is not continued."""
        frozen = {name: tensor.cpu() for name, tensor in self.earlier.items()}
        return self.options | {"earlier": hashlib.sha256(tensor_bytes(frozen)).hexdigest()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every trained tensor, in a fixed order."""
        return self.sizes

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new domain on the CPU, same seed same bytes; they change a little."""
        return self.start(seed)

    def null(self) -> ModuleTensors:
        """float32 zeros, which are no prompts."""
        return {name: torch.zeros(shape) for name, shape in self.sizes.items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> PoolHooks:
        """What the pool does to one batch.

        Raises:
            BankError: tensors are missing or have other shapes than this pool's, or there is an ``index``: one pool
                serves all domains.
        """
        if index is not None:
            raise BankError(f"a pool of {self.kind} serves all domains, expected no index of modules")
        return PoolHooks(gathered(self, tensors, prompts, None), self.serve)


@dataclass(frozen=True)
class PoolPenalty(Extra):
    """``weight * term(tensors, query)`` beside the loss; ``term`` gives a 0-d tensor for queries (B, C)."""

    weight: float
    term: Callable[[ModuleTensors, Tensor], Tensor]

    def key(self) -> float:
        """The weight; what the term is follows from the adapter."""
        return self.weight

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        """The weighted term, ``None`` for weight 0."""
        return self.weight * self.term(tensors, batch.prefix.embedding) if self.weight else None


@dataclass(frozen=True)
class PromptPool(SingleAdapter):
    """What the strategies share. They say what is trained on a new domain (``pool``), what is added to its loss
    (``extra``), what of it is kept (``remember``) and which prompts an image gets in the end (``serve``).

    Attributes:
        gain: prompts are stored divided by this. Adam moves any number by about its rate, whatever its scale, and the
            frozen keys that prompts compete with are about 2 (``sam_nano``): at the rate of other modules, prompts
            that are stored as they are stay without effect for hundreds of steps. No paper has it; theirs train longer.
    """

    gain: float = 50.0

    # Made for no adapter but their own; this one's plan makes the prefixes that they need.
    adapter: ClassVar[Mapping[str, Any] | None] = {"kind": "prompt_tokens"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("gain", self.gain)

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        """The state after the last of ``tasks``; see ``Strategy``."""
        earlier = {} if state is None else on_device(state.model, context)
        return super().learn(state, tasks, replace(context, adapter=self.adapter_in_training(earlier, context)))

    def adapter_in_training(self, earlier: ModuleTensors, context: Context) -> PoolAdapter:
        """``pool`` on the context's backbone."""
        return self.pool(earlier, context.backbone.site)

    def initial(self, state: State | None, tasks: Sequence[Task], context: Context) -> ModuleTensors | None:
        """New tensors by a seed of this domain's own, and those of the state that are trained on."""
        new = context.adapter.fresh(derived_seed("samcl.strategy", self.name, context.seed, len(tasks)))
        return new if state is None else new | {name: state.model[name] for name in self.shared()}

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        """The prompts that each image's query calls for; nobody tells the domain."""
        site = context.backbone.site
        return PoolHooks(on_device(state.model, context), lambda tensors, query: self.serve(tensors, query, site))

    def pool(self, earlier: ModuleTensors, site: AdapterSite) -> PoolAdapter:
        """What is trained on a new domain after ``earlier`` tensors (none before the first one)."""
        raise NotImplementedError

    def serve(self, tensors: Mapping[str, Tensor], query: Tensor, site: AdapterSite) -> Mapping[int, Tensor]:
        """By block (2, B, P, C) keys and values for queries (B, C) from all that was learnt."""
        raise NotImplementedError

    def shared(self) -> tuple[str, ...]:
        """Names of tensors that every domain goes on training; the others are each domain's own."""
        return ()

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as JSON values."""
        return asdict(self)
