"""One adapter that is trained through the whole stream: what naive training and all that improves on it share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import Prefix, Prompts, SuffixHooks
from samcl_core.errors import UsageError
from samcl_core.strategies.base import Context, State, Task
from samcl_core.training import Extra, train_module

__all__ = ["Choose", "SingleAdapter", "check_choose", "check_order", "on_device", "trained"]

Choose = Literal["last", "best_val"]
"""Which epoch is kept: the last, or the best on the domain's validation samples (the last where there are none)."""


@dataclass(frozen=True)
class SingleAdapter:
    """One module of any kind, trained on each domain in turn and applied to every image.

    Strategies override what they do otherwise: ``data``, ``initial``, ``extra``, ``remember``, ``hooks``.

    Attributes:
        choose: which epoch of each domain's training is kept.
    """

    choose: Choose = "last"

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    adapter: ClassVar[Mapping[str, Any] | None] = None
    is_offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choose(self.choose)

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        """The state after the last of ``tasks``; see ``Strategy``."""
        if not self.is_offline:
            check_order(state, tasks)
        extra = self.extra(state, tasks, context)
        initial = self.initial(state, tasks, context)
        place = f"{self.name}-{len(tasks)}-{tasks[-1].name}"
        model = trained(context, self.data(tasks), place, self.choose, initial=initial, extra=extra)
        return self.remember(state, tasks, model, context)

    def data(self, tasks: Sequence[Task]) -> Task:
        """What the module is trained on now: the new domain."""
        return tasks[-1]

    def initial(self, state: State | None, tasks: Sequence[Task], context: Context) -> ModuleTensors | None:
        """Where the training starts: at the tensors of the domain before, with ``None`` afresh."""
        return None if state is None else state.model

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra | None:
        """What is added to the loss and to the batches: nothing."""
        return None

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The state after the training: the module alone."""
        return State(tuple(task.name for task in tasks), model)

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        """The one module for every image."""
        return context.adapter.hooks(on_device(state.model, context), prompts)


def trained(
    context: Context,
    task: Task,
    place: str,
    choose: Choose = "last",
    *,
    initial: ModuleTensors | None = None,
    extra: Extra | None = None,
) -> ModuleTensors:
    """Train the context's adapter on one domain; ``place`` names the checkpoint of this training.

    Raises:
        TrainingError: there are no samples, or the loss is not finite.
    """
    result = train_module(
        context.backbone,
        context.adapter,
        context.cache,
        task.train,
        context.options,
        seed=context.seed,
        initial=initial,
        checkpoint=context.checkpoint(place),
        extra=extra,
        val=task.val if choose == "best_val" else (),
        progress=context.progress,
    )
    return result.tensors


def check_choose(choose: str) -> None:
    """See that ``choose`` is one of ``Choose``.

    Raises:
        ValueError: it is not.
    """
    if choose not in get_args(Choose):
        raise ValueError(f"choose is {choose!r}, expected one of {list(get_args(Choose))}")


def check_order(state: State | None, tasks: Sequence[Task]) -> None:
    """See that a state is the one after all but the last of ``tasks``.

    Raises:
        UsageError: it has learnt other domains.
    """
    found, expected = () if state is None else state.tasks, tuple(task.name for task in tasks[:-1])
    if not tasks or found != expected:
        raise UsageError(
            f"the state has learnt {list(found)}, expected {list(expected)} before the last of "
            f"{[task.name for task in tasks]}",
            hint="learn one domain after the other, each from the state before",
        )


def on_device(tensors: Mapping[str, Tensor], context: Context) -> ModuleTensors:
    """``tensors`` where the context's backbone is."""
    return {name: tensor.to(context.backbone.device) for name, tensor in tensors.items()}
