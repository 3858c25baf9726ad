"""Flow runs of their own: one a taken drop, found again instead of started twice."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

from tasks.taken import Taken, taken_folder

__all__ = ["start_apart"]

_LOST_AFTER = timedelta(seconds=120)


def start_apart(root: Path, drop: Taken, deployment: str) -> tuple[str, bool]:
    """Start the arrival of a taken drop as a run of a deployment, unless one is there that waits or works.

    A run that says it works, long after its process could have taken the drop up, was killed: it is marked as crashed
    and another one is started.

    Args:
        root: the workspace.
        drop: taken, and worked on by no process now.
        deployment: ``flow/deployment``.

    Returns:
        Id of the run, and whether it is new.
    """
    from prefect.deployments import run_deployment

    note = taken_folder(root, drop.id) / ".run"
    before = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    if before and _is_coming(before):
        return before, False
    run: Any = run_deployment(
        deployment,
        parameters={"root": str(root), "drop": drop.id},
        flow_run_name=f"drop {drop.name}",
        timeout=0,
        as_subflow=False,
        tags=["samcl", "arrival"],
    )
    with suppress(FileNotFoundError):  # the run may be over already
        note.write_text(f"{run.id}\n", encoding="utf-8")
    return str(run.id), True


def _is_coming(run: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            found = client.read_flow_run(UUID(run))
            if found.state is None or found.state.is_final():
                return False
            if found.state.is_scheduled():
                return True
            since = datetime.now(timezone.utc) - (found.start_time or found.created or datetime.now(timezone.utc))
            if since < _LOST_AFTER:
                return True
            lost: Any = Crashed(message="The process that ran it was killed.")
            client.set_flow_run_state(found.id, lost, force=True)
        return False
