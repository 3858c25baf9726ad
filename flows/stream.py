"""The flow of a stream: many domains in order inside one flow run, resumable after any interruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows.arrival import Arrival, ArrivalResult, Progressing, check_arrivals, keep, learn, publish, take_in
from flows.promotion import concluded
from samcl_core.config import Params
from samcl_core.errors import SamclError, UsageError
from tasks.steps import require_workspace

__all__ = ["StreamStopped", "declared_arrivals", "domain_stream", "in_order"]

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


def declared_arrivals(params: Params) -> list[Arrival]:
    """What ``params.yaml`` declares: steps of the stream in order, then learnt domains that are not in it yet."""
    names = [*params.names("natural"), *params.names("unseen"), *params.steps()]
    names += [name for name in params.names("learn") if name not in names]
    return [Arrival(name, None, params.domains[name].role, params.domains[name].format) for name in names]


def _as_arrival(source: Arrival | Mapping[str, Any]) -> Arrival:
    """A run that was started from Prefect's page has plain JSON for its sources."""
    if isinstance(source, Arrival):
        return source
    try:
        return Arrival(**source)
    except TypeError as exc:
        raise UsageError(
            f"source {dict(source)!r} cannot be understood: {exc}",
            hint='for example {"domain": "Kvasir", "source": "/data/Kvasir", "role": "learn"}',
        ) from exc


@flow(name="domain-stream", validate_parameters=False)
def domain_stream(
    root: str | Path, sources: Sequence[Arrival | Mapping[str, Any]] | None = None
) -> list[ArrivalResult]:
    """Take domains in one after the other: each learnt one is trained and published before the next begins.

    Running it again continues where it was interrupted and does nothing where nothing changed. Without sources it
    brings what the workspace declares up to date.

    Raises:
        UsageError: a name, role or source cannot be; nothing was changed.
        StreamStopped: a domain failed; the banks published before it stay.
    """
    workspace = require_workspace(root)
    arrivals = in_order([_as_arrival(source) for source in sources or declared_arrivals(workspace.params())])
    check_arrivals(workspace, arrivals)
    progress = Progressing(workspace)
    results: list[ArrivalResult] = []
    registered = None
    for arrival in arrivals:
        progress.outcomes = {}
        try:
            registered = None
            warnings: tuple[str, ...] = ()
            take_in(progress, arrival)
            if arrival.role == "learn":
                learn(progress, arrival.domain)
                registered = publish(progress, arrival.domain, upto=arrival.domain)
                warnings = keep(progress, arrival.domain, registered)
        except SamclError as exc:
            raise StreamStopped(arrival.domain, [result.domain for result in results], exc) from exc
        results.append(ArrivalResult(arrival.domain, arrival.role, progress.outcomes, registered, warnings))
    # Steps of the workspace that were not among the sources follow what changed before them.
    last = workspace.params().steps()[-1:]
    learnt = [result.domain for result in results if result.role == "learn"]
    if not learnt or last != tuple(learnt[-1:]):
        registered = publish(progress, None) if last else None
        warnings = keep(progress, arrivals[-1].domain, registered) if arrivals else ()
        results[-1:] = [
            replace(result, registered=registered, warnings=(*result.warnings, *warnings)) for result in results[-1:]
        ]
    return concluded(results, registered)
