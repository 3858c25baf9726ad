"""Deployments of a workspace: the inbox on an interval, arrivals by event, the stream, the nightly evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from flows.evaluation import champion_evaluation
from flows.inbox import drop_arrival, inbox_look
from flows.stream import domain_stream
from samcl_core.errors import UsageError
from tasks.workspace import Workspace

__all__ = ["ARRIVED", "NIGHTLY", "deployments_of", "serve_workspace"]

ARRIVED = "samcl.domain.arrived"
"""Event that starts an arrival: resource ``samcl.domain.<name>``, payload ``path`` and, if wanted, ``domain``,
``role``, ``format`` and ``label``."""

NIGHTLY = "0 3 * * *"


def deployments_of(root: Path, *, name: str | None = None, nightly: str | None = NIGHTLY) -> list[RunnerDeployment]:
    """The four deployments of a workspace, each called ``<flow>/<name>``.

    Args:
        root: the workspace.
        name: by default that of its folder, so that several workspaces can share a server.
        nightly: when the champion is evaluated, as cron; ``None`` for never.

    Raises:
        UsageError: ``nightly`` is no cron expression.
    """
    options = Workspace(root).params().inbox
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or root.name).strip("-") or "samcl"
    _check_cron(nightly)
    place = {"root": str(root)}

    def of(flow: Any, kind: str, **more: Any) -> RunnerDeployment:
        parameters = place | more.pop("parameters", {})
        tags = ["samcl", kind, f"workspace:{root.name}"]
        where = EntrypointType.MODULE_PATH
        made: RunnerDeployment = flow.to_deployment(
            name, parameters=parameters, tags=tags, entrypoint_type=where, **more
        )
        return made

    trigger = DeploymentEventTrigger(
        name=f"{ARRIVED} for {name}",
        description="A data set arrived somewhere: take it in.",
        expect={ARRIVED},
        match={"prefect.resource.id": "samcl.domain.*"},
        parameters=place | {key: _of_payload(key) for key in _PAYLOAD},
    )
    arrivals = {"arrivals": f"{drop_arrival.name}/{name}"}
    return [
        of(
            inbox_look,
            "inbox",
            interval=options.interval_s,
            parameters=arrivals,
            # Looks that come late, after the machine slept for instance, must not pile up.
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            description=_INBOX,
        ),
        of(
            drop_arrival,
            "arrival",
            triggers=[trigger],
            concurrency_limit=options.max_parallel,
            description=_ARRIVAL,
        ),
        of(domain_stream, "stream", concurrency_limit=1, description=_STREAM),
        of(champion_evaluation, "evaluation", description=_EVALUATION, **({"cron": nightly} if nightly else {})),
    ]


_PAYLOAD = ("path", "domain", "role", "format", "label")
_INBOX = "Looks into the inbox and starts the arrival of each complete drop."
_ARRIVAL = f"Takes one drop in. Started by the inbox, by the event `{ARRIVED}`, or by hand with a `path`."
_STREAM = "Brings the workspace's stream up to date, or takes the given sources in; with `backfill` as one bank."
_EVALUATION = "Scores the champion again on the present test data and compares with what is on record."


def _of_payload(key: str) -> dict[str, str]:
    """A text of the event, empty where it says nothing; Prefect's short form fails for a key that is missing."""
    return {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{key} | default('') }}}}"}


def _check_cron(cron: str | None) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    if cron is None:
        return
    try:
        CronSchedule(cron=cron)
    except ValueError as exc:
        raise UsageError(f"{cron!r} is no cron expression", hint=f"--nightly '{NIGHTLY}', or --nightly none") from exc


def serve_workspace(deployments: list[RunnerDeployment]) -> None:
    """Run what is due until a signal ends it; then the schedules are paused."""
    serve(*deployments, print_starting_message=False, limit=None)
