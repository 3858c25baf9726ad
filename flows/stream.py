"""The flow of a stream: many domains in order inside one flow run, resumable after any interruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow

from flows.arrival import Arrival, ArrivalResult, Progressing, check_arrivals, learn, publish, take_in
from flows.promotion import concluded
from samcl_core.errors import SamclError
from tasks.steps import require_workspace

__all__ = ["StreamStopped", "domain_stream", "in_order"]

_ROLE_ORDER = {"natural": 0, "unseen": 1, "learn": 2}


class StreamStopped(SamclError):
    """A domain of a stream failed; what came before it is published and stays.

    Attributes:
        domain: the one that failed.
        done: the domains before it.
        cause: its error.
    """

    def __init__(self, domain: str, done: Sequence[str], cause: SamclError) -> None:
        self.domain = domain
        self.done = tuple(done)
        self.cause = cause
        self.exit_code = cause.exit_code
        before = f"done before it and kept: {', '.join(done)}" if done else "nothing was done before it"
        super().__init__(f"{domain}: {cause.message}\n  the stream stopped here; {before}", hint=cause.hint)


def in_order(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Natural and unseen domains first (the bank before the first step knows of them), learnt ones as given."""
    return sorted(arrivals, key=lambda arrival: _ROLE_ORDER.get(arrival.role, 2))


@flow(name="domain-stream", validate_parameters=False)
def domain_stream(root: str | Path, sources: Sequence[Arrival]) -> list[ArrivalResult]:
    """Take domains in one after the other: each learnt one is trained and published before the next begins.

    Running it again continues where it was interrupted and does nothing where nothing changed.

    Raises:
        UsageError: a name, role or source cannot be; nothing was changed.
        StreamStopped: a domain failed; the banks published before it stay.
    """
    workspace = require_workspace(root)
    arrivals = in_order(sources)
    check_arrivals(workspace, arrivals)
    progress = Progressing(workspace)
    results: list[ArrivalResult] = []
    registered = None
    for arrival in arrivals:
        progress.outcomes = {}
        try:
            registered = None
            take_in(progress, arrival)
            if arrival.role == "learn":
                learn(progress, arrival.domain)
                registered = publish(progress, arrival.domain, upto=arrival.domain)
        except SamclError as exc:
            raise StreamStopped(arrival.domain, [result.domain for result in results], exc) from exc
        results.append(ArrivalResult(arrival.domain, arrival.role, progress.outcomes, registered))
    # Steps of the workspace that were not among the sources follow what changed before them.
    last = workspace.params().steps()[-1:]
    learnt = [result.domain for result in results if result.role == "learn"]
    if last and last != tuple(learnt[-1:]):
        registered = publish(progress, None)
        results[-1:] = [replace(result, registered=registered) for result in results[-1:]]
    return concluded(results, registered)
