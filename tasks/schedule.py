"""Work with dependencies: what is ready is started, so many at a time; what failed holds up only what needs it."""

from __future__ import annotations

import heapq
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

__all__ = ["Node", "Outcome", "run_graph"]


class Node(Protocol):
    """One piece of work."""

    @property
    def id(self) -> str:
        """Unique among the pieces."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of those that must be finished before."""
        ...


N = TypeVar("N", bound=Node)
Done = Callable[[BaseException | None], None]


@dataclass
class Outcome:
    """How a graph ended.

    Attributes:
        finished: ids, in the order in which they ended.
        failed: id to its error, in the order in which they ended.
        blocked: ids that were not started because something they need failed, in the order of the plan.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)


def run_graph(
    nodes: Sequence[N],
    start: Callable[[N, Done], None],
    width: int,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Start every node once all that it needs is finished; earlier ones of ``nodes`` first.

    Args:
        nodes: in any order.
        start: begins a node and returns at once; calls its second argument, from any thread, when the node ended:
            with ``None`` or with the error.
        width: how many may run at a time, at least 1.
        on_end: told after each end.

    Returns:
        How each node ended. An error does not stop those that do not need the failed node.

    Raises:
        ValueError: an id comes twice, a need is not among the nodes, or nodes need each other in a circle.
    """
    places = {node.id: place for place, node in enumerate(nodes)}
    waiting = {node.id: set(node.needs) for node in nodes}
    if len(places) != len(nodes) or any(not needs <= set(places) for needs in waiting.values()):
        raise ValueError("ids must be unique and every need one of the nodes")
    ready = [places[name] for name, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
    outcome, running = Outcome(), 0
    while ready or running:
        while ready and running < width:
            node = nodes[heapq.heappop(ready)]
            del waiting[node.id]
            running += 1
            start(node, lambda error, name=node.id: ended.put((name, error)))  # type: ignore[misc]
        name, error = ended.get()
        running -= 1
        if error is not None:
            outcome.failed[name] = error
        else:
            outcome.finished.append(name)
            for other, needs in waiting.items():
                if name in needs:
                    needs.discard(name)
                    if not needs:
                        heapq.heappush(ready, places[other])
        on_end(outcome)
    if waiting and not outcome.failed:
        raise ValueError(f"these need each other in a circle: {sorted(waiting)}")
    outcome.blocked = sorted(waiting, key=places.__getitem__)
    return outcome
