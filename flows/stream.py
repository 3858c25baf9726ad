"""The flow of a stream: many domains inside one flow run, learnt side by side and published in order; resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows.arrival import Arrival, ArrivalResult, Progressing, check_arrivals, keep, publish
from flows.promotion import concluded
from flows.side_by_side import Parts, side_by_side
from samcl_core.config import Params
from samcl_core.errors import SamclError, UsageError
from tasks.steps import require_workspace

__all__ = ["StreamStopped", "declared_arrivals", "domain_stream", "in_order"]

_ROLE_ORDER = {"natural": 0, "unseen": 1, "learn": 2}


class StreamStopped(SamclError):
    """A domain of a stream failed; what was published stays.

    Attributes:
        domain: the one that failed, the first of several.
        done: the domains that are done.
        cause: its error.
    """

    def __init__(self, domain: str, done: Sequence[str], cause: SamclError, others: Sequence[str] = ()) -> None:
        self.domain = domain
        self.done = tuple(done)
        self.cause = cause
        self.exit_code = cause.exit_code
        kept = f"done and kept: {', '.join(done)}" if done else "nothing was done before it"
        failed = f"; failed as well: {', '.join(others)}" if others else ""
        super().__init__(f"{domain}: {cause.message}\n  the stream stopped here{failed}; {kept}", hint=cause.hint)


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
    root: str | Path,
    sources: Sequence[Arrival | Mapping[str, Any]] | None = None,
    backfill: bool = False,
) -> list[ArrivalResult]:
    """Take domains in: several at a time are prepared and trained, on the runner that the settings name (``pipeline``).

    One after the other, in their order, they are published: each is a bank that is evaluated, registered and judged.
    With ``backfill`` all new ones become one bank at the end: one fit of the selector, one evaluation, one version, one
    decision that looks at each of them. That bank is the one that would have been the last.

    Running it again continues where it was interrupted and does nothing where nothing changed. Without sources it
    brings what the workspace declares up to date.

    Raises:
        UsageError: a name, role or source cannot be; nothing was changed.
        StreamStopped: a domain failed; the banks published before it stay. Of a back-fill the others are published.
    """
    workspace = require_workspace(root)
    arrivals = in_order([_as_arrival(source) for source in sources or declared_arrivals(workspace.params())])
    check_arrivals(workspace, arrivals)
    progress = Progressing.begun(workspace)
    with side_by_side(progress, arrivals, is_stopping=not backfill) as parts:
        results = (_publish_together if backfill else _publish_each)(progress, parts, arrivals)
    return concluded(results, results[-1].registered if results else None)


def _publish_each(progress: Progressing, parts: Parts, arrivals: Sequence[Arrival]) -> list[ArrivalResult]:
    workspace = progress.workspace
    results: list[ArrivalResult] = []
    for arrival in arrivals:
        registered: dict[str, Any] | None = None
        warnings: tuple[str, ...] = ()
        try:
            parts.finish(arrival)
            if arrival.role == "learn" and _ends_a_step(workspace.params(), arrival.domain):
                registered = publish(progress, [arrival.domain], upto=arrival.domain)
                warnings = keep(progress, arrival.domain, registered)
        except SamclError as exc:
            raise StreamStopped(arrival.domain, [result.domain for result in results], exc) from exc
        results.append(ArrivalResult(arrival.domain, arrival.role, progress.outcomes, registered, warnings))
    # Steps of the workspace that were not among the sources follow what changed before them.
    learnt = [result.domain for result in results if result.role == "learn"]
    if not learnt or workspace.params().steps()[-1:] != tuple(learnt[-1:]):
        results = _with_published(progress, results, [])
    return results


def _ends_a_step(params: Params, domain: str) -> bool:
    """A domain inside a back-fill of the stream is published by the end of that back-fill."""
    return domain not in params.stream or params.stream[domain].fit


def _publish_together(progress: Progressing, parts: Parts, arrivals: Sequence[Arrival]) -> list[ArrivalResult]:
    results: list[ArrivalResult] = []
    failed: dict[str, SamclError] = {}
    for arrival in arrivals:
        try:
            parts.finish(arrival)
            results.append(ArrivalResult(arrival.domain, arrival.role, progress.outcomes))
        except SamclError as exc:
            failed[arrival.domain] = exc
    stream = progress.workspace.params().stream
    needed = [arrival.domain for arrival in arrivals if arrival.role != "learn" or arrival.domain in stream]
    if not set(failed) & set(needed):
        # A bank without one of its domains, or that does not know all natural images, would be another bank.
        results = _with_published(progress, results, [one.domain for one in results if one.role == "learn"])
    if failed:
        first, *others = failed
        done = [] if set(failed) & set(needed) else [result.domain for result in results]
        raise StreamStopped(first, done, failed[first], others)
    return results


def _with_published(
    progress: Progressing, results: Sequence[ArrivalResult], domains: Sequence[str]
) -> list[ArrivalResult]:
    """The results, the last of them with what came of publishing ``domains`` and the whole stream."""
    if not results:
        return []
    *before, last = results
    progress.outcomes = dict(last.outcomes)
    registered = publish(progress, domains)
    warnings = (*last.warnings, *keep(progress, last.domain, registered))
    return [*before, replace(last, outcomes=progress.outcomes, registered=registered, warnings=warnings)]
