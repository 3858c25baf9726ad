"""Named Prefect limits: how many steps may use the GPU, edit the settings or publish a bank at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from samcl_core.errors import SamclError

__all__ = ["LEASE_S", "LIMITS", "ensure_limits", "held", "num_gpus", "repair_after_kill"]

LIMITS = ("gpu", "params", "bank")
LEASE_S = 60.0
"""A slot whose holder was killed comes back after this time."""

_FLOWS = ("domain-arrival", "domain-stream", "bank-promotion", "inbox", "drop-arrival", "champion-evaluation")


def num_gpus() -> int:
    """How many CUDA devices this process may use, at least 1: without a GPU one training at a time uses the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip() not in {"", "-1"}]))
    if shutil.which("nvidia-smi") is None:
        return 1
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
        return max(1, sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))
    return 1


def ensure_limits() -> None:
    """Make the limits that are missing. One that is there keeps its number: somebody may have set it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        for name in LIMITS:
            try:
                client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                slots = num_gpus() if name == "gpu" else 1
                with suppress(ObjectAlreadyExists):
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold one slot of a limit, waiting as long as it takes. A missing limit is an error, never "no limit".

    Raises:
        SamclError: the limit does not exist on the server.
    """
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    # A renewal that fails once must not end a long training.
    slot = concurrency(name, occupy=1, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False)
    try:
        slot.__enter__()
    except ConcurrencySlotAcquisitionError as exc:
        raise SamclError(f"limit {name!r} cannot be held: {exc}", hint=f"prefect gcl create {name} --limit 1") from exc
    with ExitStack() as stack:
        stack.push(slot)
        yield


def repair_after_kill(leases: Path) -> int:
    """Free the slots and end the flow runs of killed commands. Only for a workspace's own server without other users.

    Args:
        leases: the server's folder of leases.

    Returns:
        How many flow runs were marked as crashed.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        for lease in leases.glob("*-*-*-*-*.json"):
            with suppress(Exception):
                client.release_concurrency_slots_with_lease(UUID(lease.stem))
        for name in LIMITS:
            with suppress(ObjectNotFound):
                if client.read_global_concurrency_limit_by_name(name).active_slots:
                    client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))
        return _crash_lost_runs(client)


def _crash_lost_runs(client: Any) -> int:
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    alive = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(_FLOWS))),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=alive)),
    )
    lost = [run for run in runs if run.deployment_id is None]
    for run in lost:
        state: Any = Crashed(message="The command that ran it was killed.")
        client.set_flow_run_state(run.id, state, force=True)
    return len(lost)
