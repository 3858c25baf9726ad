"""Elastic Weight Consolidation: weights that mattered for earlier domains are held where they were."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import Masks
from samcl_core.domains.layout import Sample
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.keeping import as_batch
from samcl_core.strategies.single import SingleAdapter, on_device
from samcl_core.tensors import tensor_bytes
from samcl_core.training import Batch, Extra, Forward, MaskCache, batch_loss

__all__ = ["Anchor", "Ewc", "fisher_of"]


@dataclass(frozen=True)
class Ewc(SingleAdapter):
    """Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, arXiv 1612.00796.

    ``loss + weight / 2 * sum_k sum_i F_k,i (theta_i - theta_k,i)^2`` over all domains k learnt so far, each with its
    own Fisher information and its own optimum. A sum of quadratics is a quadratic (the paper says so in section 2.1),
    and is kept as one: the memory does not grow with the number of domains.

    F is the diagonal of the empirical Fisher information: the mean over a domain's training samples of the squared
    gradient of the training loss of *one* sample. The square of a batch's mean gradient, which many programs take, is
    smaller by about the size of the batch (van de Ven, arXiv 2502.11756).

    Attributes:
        weight: lambda of the paper; 400 is its "Fisher multiplier" (appendix, table of the Atari experiments). It
            depends on the scale of the loss: tune it on validation samples.
    """

    weight: float = 400.0

    name: ClassVar[str] = "ewc"
    title: ClassVar[str] = "EWC"
    reference: ClassVar[str] = "Kirkpatrick et al., Overcoming catastrophic forgetting, arXiv 1612.00796"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight is {self.weight:g}, expected 0 or more")

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra | None:
        """The penalty of all earlier domains; nothing on the first one."""
        return None if state is None else _Consolidation(Anchor.of(state), self.weight, context)

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The module, and the penalty with the new domain's Fisher information in it."""
        fisher = fisher_of(model, tasks[-1].train, context)
        anchor = Anchor(fisher, model) if state is None else Anchor.of(state).added(fisher, model)
        names = tuple(task.name for task in tasks)
        return State(names, model, memory=anchor.tensors(), values={"offset": anchor.offset})


@dataclass(frozen=True, eq=False)
class Anchor:
    """``sum_k F_k (theta - theta_k)^2`` as ``fisher * (theta - center)^2``, summed, plus ``offset``.

    Attributes:
        fisher: sum of the domains' Fisher information, by tensor name.
        center: mean of the domains' optima, weighted by their Fisher information.
        offset: what the sum is at its minimum.
    """

    fisher: ModuleTensors
    center: ModuleTensors
    offset: float = 0.0

    @staticmethod
    def of(state: State) -> Anchor:
        """The anchor in a state of EWC."""
        parts = {part: _part(state.memory, part) for part in ("fisher", "center")}
        return Anchor(parts["fisher"], parts["center"], float(state.values["offset"]))

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors for ``State.memory``."""
        named = {"fisher": self.fisher, "center": self.center}
        return {f"{part}/{name}": tensor for part, tensors in named.items() for name, tensor in tensors.items()}

    def added(self, fisher: Mapping[str, Tensor], optimum: Mapping[str, Tensor]) -> Anchor:
        """The anchor with one domain more; the same function of theta as the sum of both, up to rounding."""
        sums, centers, offset = {}, {}, self.offset
        for name in sorted(self.fisher):  # one order of the sums, whatever a file gave back
            old, new, center = self.fisher[name].double(), fisher[name].double(), self.center[name].double()
            step = optimum[name].double() - center
            total = old + new
            share = torch.where(total > 0, new / total, torch.zeros_like(total))
            sums[name], centers[name] = total.float(), (center + share * step).float()
            offset += float((old * share * step.square()).sum())
        return Anchor(sums, centers, offset)

    def penalty(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """``sum_k F_k (theta - theta_k)^2`` as a 0-d tensor."""
        terms = [
            (self.fisher[name] * (tensors[name] - self.center[name]).square()).sum() for name in sorted(self.fisher)
        ]
        return torch.stack(terms).sum() + self.offset


class _Consolidation(Extra):
    def __init__(self, anchor: Anchor, weight: float, context: Context) -> None:
        self._digest = hashlib.sha256(tensor_bytes(anchor.tensors(), anchor.offset)).hexdigest()
        self._anchor = Anchor(on_device(anchor.fisher, context), on_device(anchor.center, context), anchor.offset)
        self._weight = weight

    def key(self) -> Any:
        return ["ewc", self._weight, self._digest]

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        return self._weight / 2 * self._anchor.penalty(tensors)


def fisher_of(model: Mapping[str, Tensor], samples: Sequence[Sample], context: Context) -> ModuleTensors:
    """Diagonal of the empirical Fisher information: the mean squared gradient of one sample's training loss.

    Args:
        model: the trained module.
        samples: of its domain, at least one; their order does not matter beyond rounding.
        context: backbone, adapter, options of the loss.

    Returns:
        float32 on the CPU, >= 0, with the names and shapes of ``model``.
    """
    backbone, masks = context.backbone, MaskCache(context.backbone.image_size)
    tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in on_device(model, context).items()}
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
    for done, sample in enumerate(samples, 1):
        batch = as_batch([sample], masks, context, done)
        hooks = context.adapter.hooks(tensors, batch.prompts)
        found = backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)
        loss = batch_loss(found, batch, context.options).total
        gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        for name, gradient in zip(tensors, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.double().square()
        context.progress("Fisher information", done, len(samples))
    return {name: (total / len(samples)).float().cpu() for name, total in sums.items()}


def _part(memory: Mapping[str, Tensor], part: str) -> ModuleTensors:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)}
