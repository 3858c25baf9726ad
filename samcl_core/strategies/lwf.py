"""Learning without Forgetting: on the new domain's images, answer as the module did before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import Masks
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.single import SingleAdapter, on_device
from samcl_core.training import Batch, Extra, Forward

__all__ = ["Lwf", "distillation"]


@dataclass(frozen=True)
class Lwf(SingleAdapter):
    """Li and Hoiem, *Learning without Forgetting*, arXiv 1606.09282, for masks.

    The teacher is the module before the new domain, frozen. The paper's softmax over old classes becomes a sigmoid a
    pixel; its cross-entropy becomes a Kullback-Leibler divergence, which has the same gradient and is 0 where student
    and teacher agree. Nothing is kept: the teacher is the module itself.

    Attributes:
        temperature: T of the paper (section 3, "we use T = 2").
        weight: lambda_o of the paper, the weight of the old tasks' loss (1 in its experiments).
    """

    temperature: float = 2.0
    weight: float = 1.0

    name: ClassVar[str] = "lwf"
    title: ClassVar[str] = "LwF"
    reference: ClassVar[str] = "Li and Hoiem, Learning without Forgetting, arXiv 1606.09282"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature:g}, expected more than 0")
        if self.weight < 0:
            raise ValueError(f"weight is {self.weight:g}, expected 0 or more")

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra | None:
        """The distillation from the module before; nothing on the first domain."""
        return None if state is None else _Distillation(on_device(state.model, context), self)


class _Distillation(Extra):
    """The teacher is where the training starts, which is a part of every training's key already."""

    def __init__(self, teacher: ModuleTensors, strategy: Lwf) -> None:
        self._teacher = teacher
        self._strategy = strategy

    def key(self) -> Any:
        return ["lwf", self._strategy.temperature, self._strategy.weight]

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        with torch.no_grad():
            taught = forward(self._teacher, batch)
        return self._strategy.weight * distillation(found.logits, taught.logits, self._strategy.temperature)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over pixels of ``KL(sigmoid(teacher / T) || sigmoid(student / T))``, 0-d, 0 where both agree.

    Args:
        student: logits of any shape.
        teacher: logits of the same shape; no gradient flows there.
        temperature: T > 0.
    """
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    inside = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    outside = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (inside + outside).mean()
