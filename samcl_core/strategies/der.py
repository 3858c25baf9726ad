"""Dark Experience Replay: stored samples keep the answers of the module that learnt them, and these are asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import Masks
from samcl_core.domains.layout import Sample
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.keeping import as_batch, drawn, identity, keep, kept_samples, picked
from samcl_core.strategies.single import SingleAdapter, on_device
from samcl_core.tensors import tensor_bytes
from samcl_core.training import Batch, Extra, Forward, MaskCache, batch_loss

__all__ = ["Der", "logits_of"]

_LOGITS = "logits/"


@dataclass(frozen=True)
class Der(SingleAdapter):
    """Buzzega et al., *Dark Experience for General Continual Learning*, arXiv 2004.07211: DER++, and DER for beta = 0.

    Each step adds ``alpha * mean((logits - stored logits)^2) + beta * loss`` on as many stored samples as the new
    domain's batch has. Differences from the paper: samples and their low-resolution logits are stored at the end of
    each domain, when the module has learnt it (the paper stores them along the way, because its streams have no ends);
    one draw serves both terms (the paper draws twice), which saves a pass.

    Attributes:
        alpha: weight of the stored logits; 0.1 is the paper's DER++ on Sequential CIFAR-10 with its smallest buffer.
        beta: weight of the stored masks, 0.5 as there; 0 is DER, for which the paper takes alpha 0.3.
        buffer_size: stored samples of each domain; 10 is what MoDA stores (arXiv 2412.06418).
    """

    alpha: float = 0.1
    beta: float = 0.5
    buffer_size: int = 10

    name: ClassVar[str] = "der"
    title: ClassVar[str] = "DER++"
    reference: ClassVar[str] = "Buzzega et al., Dark Experience for General Continual Learning, arXiv 2004.07211"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, expected 0 or more")
        if self.buffer_size < 1:
            raise ValueError(f"buffer_size is {self.buffer_size}, expected at least 1")

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra | None:
        """The replay of all stored samples and answers; nothing on the first domain."""
        if state is None:
            return None
        stored = kept_samples(state, tasks)
        logits = torch.cat([state.memory[_LOGITS + name] for name in stored])
        return _DarkReplay([sample for samples in stored.values() for sample in samples], logits, self, context)

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The module, and some samples of the new domain with its answers, beside those stored before."""
        new, names = tasks[-1].name, tuple(task.name for task in tasks)
        samples = picked(tasks[-1], self.buffer_size, context.seed)
        ids, size = keep(samples)
        logits = {_LOGITS + new: logits_of(model, samples, context)}
        if state is None:
            return State(names, model, memory=logits, kept={new: ids}, kept_bytes=size)
        memory, kept = {**state.memory, **logits}, {**state.kept, new: ids}
        return State(names, model, memory=memory, kept=kept, kept_bytes=state.kept_bytes + size)


class _DarkReplay(Extra):
    def __init__(self, stored: Sequence[Sample], logits: Tensor, strategy: Der, context: Context) -> None:
        self._stored = list(stored)
        self._logits = logits
        self._strategy = strategy
        self._context = context
        self._masks = MaskCache(context.backbone.image_size)

    def key(self) -> Any:
        digest = hashlib.sha256(tensor_bytes({"logits": self._logits})).hexdigest()
        strategy = self._strategy
        return ["der", strategy.alpha, strategy.beta, self._context.seed, identity(self._stored), digest]

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        rows = drawn(len(self._stored), batch.num_images, self._context.seed, batch.step)[batch.rows]
        replayed = as_batch([self._stored[row] for row in rows], self._masks, self._context, batch.step)
        replayed = replace(replayed, first=batch.first, whole=batch.num_images)
        answered = forward(tensors, replayed)
        dark = F.mse_loss(answered.logits.float(), self._logits[rows].to(answered.logits.device))
        if self._strategy.beta == 0:
            return self._strategy.alpha * dark
        known = batch_loss(answered, replayed, self._context.options).total / batch.share
        return self._strategy.alpha * dark + self._strategy.beta * known


@torch.no_grad()
def logits_of(model: ModuleTensors, samples: Sequence[Sample], context: Context) -> Tensor:
    """What a module answers to ``samples`` in training: (n, 1, h, w) float32 low-resolution logits on the CPU."""
    tensors, masks = on_device(model, context), MaskCache(context.backbone.image_size)
    parts, size = [], context.options.batch_size
    for start in range(0, len(samples), size):
        batch = as_batch(samples[start : start + size], masks, context)
        hooks = context.adapter.hooks(tensors, batch.prompts)
        parts.append(context.backbone.suffix(batch.prefix, batch.prompts, hooks, training=True).logits.float().cpu())
    return torch.cat(parts)
