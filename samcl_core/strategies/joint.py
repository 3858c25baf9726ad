"""Joint training: one module, trained once on all domains together. The ceiling of what one module can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from samcl_core.adapters.base import ModuleTensors
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.keeping import keep
from samcl_core.strategies.single import SingleAdapter

__all__ = ["Joint"]


@dataclass(frozen=True)
class Joint(SingleAdapter):
    """All domains at once, from a fresh module. To learn one domain more it needs every sample again: it keeps all.

    A table's upper bound, not a method of continual learning (arXiv 2412.06418; its code has none, METHOD section 5).
    """

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "joint training"
    reference: ClassVar[str] = "upper bound; joint training in arXiv 2412.06418"
    is_offline: ClassVar[bool] = True

    def data(self, tasks: Sequence[Task]) -> Task:
        """All domains."""
        train = tuple(sample for task in tasks for sample in task.train)
        return Task("joint", train, tuple(sample for task in tasks for sample in task.val))

    def initial(self, state: State | None, tasks: Sequence[Task], context: Context) -> ModuleTensors | None:
        """Always afresh: the result does not depend on the order of the domains."""
        return None

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The module, and all samples as what the next training needs."""
        kept: dict[str, tuple[str, ...]] = {}
        kept_bytes = 0
        for task in tasks:
            kept[task.name], size = keep(task.train)
            kept_bytes += size
        return State(tuple(task.name for task in tasks), model, kept=kept, kept_bytes=kept_bytes)
