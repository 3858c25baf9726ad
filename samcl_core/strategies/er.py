"""Experience replay: a few samples of each domain are stored, and every later batch holds some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from samcl_core.adapters.base import ModuleTensors
from samcl_core.domains.layout import Sample
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.keeping import drawn, identity, keep, kept_samples, picked
from samcl_core.strategies.single import SingleAdapter
from samcl_core.training import Extra

__all__ = ["Er", "num_replayed"]


@dataclass(frozen=True)
class Er(SingleAdapter):
    """Chaudhry et al., *On Tiny Episodic Memories in Continual Learning*, arXiv 1902.10486.

    The stored samples of a domain are drawn at random once, after it was learnt. A later step takes the new domain's
    batch and adds stored samples of all earlier domains, drawn evenly; the loss is the mean over both.

    Attributes:
        buffer_size: stored samples of each domain. 10 is what MoDA stores (arXiv 2412.06418); the paper's tiny
            memories hold 1 to 15 of a class.
        replay_frac: share of stored samples in each batch, 0 to 1. The paper's batches are halves (10 new, 10 stored).
    """

    buffer_size: int = 10
    replay_frac: float = 0.5

    name: ClassVar[str] = "er"
    title: ClassVar[str] = "ER"
    reference: ClassVar[str] = "Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size < 1:
            raise ValueError(f"buffer_size is {self.buffer_size}, expected at least 1")
        if not 0 < self.replay_frac < 1:
            raise ValueError(f"replay_frac is {self.replay_frac:g}, expected more than 0 and less than 1")

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra | None:
        """The replay of all stored samples; nothing on the first domain."""
        if state is None:
            return None
        stored = [sample for samples in kept_samples(state, tasks).values() for sample in samples]
        return _Replay(stored, self.replay_frac, context.seed)

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The module, and some samples of the new domain beside those stored before."""
        ids, size = keep(picked(tasks[-1], self.buffer_size, context.seed))
        kept = {} if state is None else state.kept
        before = 0 if state is None else state.kept_bytes
        names = tuple(task.name for task in tasks)
        return State(names, model, kept={**kept, tasks[-1].name: ids}, kept_bytes=before + size)


class _Replay(Extra):
    def __init__(self, stored: Sequence[Sample], frac: float, seed: int) -> None:
        self._stored = list(stored)
        self._frac = frac
        self._seed = seed

    def key(self) -> Any:
        return ["er", self._frac, self._seed, identity(self._stored)]

    def chosen(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]:
        count = num_replayed(len(samples), self._frac)
        return [*samples, *(self._stored[row] for row in drawn(len(self._stored), count, self._seed, step))]


def num_replayed(num_new: int, frac: float) -> int:
    """How many stored samples join ``num_new`` new ones to be the share ``frac`` of the batch; at least one."""
    return max(1, round(num_new * frac / (1 - frac)))
