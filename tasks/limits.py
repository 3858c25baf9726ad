"""Named Prefect limits: how many steps may use the GPU, edit the settings or publish a bank at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from samcl_core.config import load_params
from samcl_core.errors import SamclError
from tasks.devices import num_gpus
from tasks.ending import can_end, check_ending

__all__ = ["LEASE_S", "LIMITS", "ensure_limits", "held", "repair_after_kill"]

LIMITS = ("gpu", "params", "bank")
LEASE_S = 60.0
"""A slot whose holder was killed comes back after this time."""

_LOOK_EVERY_S = 30.0
_FLOWS = ("domain-arrival", "domain-stream", "bank-promotion", "inbox", "drop-arrival", "champion-evaluation")


def ensure_limits(root: Path | None = None) -> None:
    """Make the limits that are missing. One that is there keeps its number: somebody may have set it.

    Where the settings of the workspace ``root`` name the number of GPUs, that is what ``gpu`` gets.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    wanted = _num_wanted(root)
    with get_client(sync_client=True) as client:
        for name in LIMITS:
            slots = num_gpus(wanted) if name == "gpu" else 1
            try:
                found = client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                with suppress(ObjectAlreadyExists):
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
            else:
                if name == "gpu" and wanted is not None and found.limit != slots:
                    client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=slots))


def _num_wanted(root: Path | None) -> int | None:
    if root is None or not (root / "params.yaml").is_file():
        return None
    with suppress(SamclError):  # whatever needs the settings says what is wrong with them
        return load_params(root / "params.yaml").pipeline.gpus
    return None


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold one slot of a limit, waiting as long as it takes. A missing limit is an error, never "no limit".

    Raises:
        Ended: the flow around it was interrupted while it waited.
        SamclError: the limit does not exist on the server.
    """
    slot = None
    while slot is None:
        check_ending()
        slot = _entered(name)
    with ExitStack() as stack:
        stack.push(slot)
        yield


class _WaitingIsNoError(logging.Filter):
    """Prefect logs an error whenever a wait for a slot ends without one; here the next wait begins."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not ("ConcurrencySlotAcquisition" in text and "TimeoutError" in text)


_quiet = _WaitingIsNoError()


def _entered(name: str) -> Any:
    """The context manager of a slot, entered; ``None`` when there was none for some time."""
    from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    logging.getLogger("prefect._internal.concurrency").addFilter(_quiet)
    # A renewal that fails once must not end a long training.
    slot = concurrency(
        name,
        occupy=1,
        strict=True,
        lease_duration=LEASE_S,
        raise_on_lease_renewal_failure=False,
        timeout_seconds=_LOOK_EVERY_S if can_end() else None,
    )
    try:
        slot.__enter__()
    except AcquireConcurrencySlotTimeoutError:
        return None
    except ConcurrencySlotAcquisitionError as exc:
        raise SamclError(f"limit {name!r} cannot be held: {exc}", hint=f"prefect gcl create {name} --limit 1") from exc
    return slot


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
