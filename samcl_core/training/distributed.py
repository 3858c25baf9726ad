"""Several processes that train one module together: started by ``torchrun``, or by the train stage itself.

Every process computes the gradients of its share of each batch. One ``all_reduce`` of one flat vector a step adds them
up, and every process makes the same update. A module is a few tensors of some kilobytes, so this costs less than
``DistributedDataParallel``, and it is exact where that is not: that averages over processes, whatever the number of
images each of them had.

In one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from samcl_core.errors import TrainingError, UsageError

__all__ = [
    "RENDEZVOUS",
    "ProcessLost",
    "add_up",
    "device_of",
    "gathered",
    "is_first",
    "is_launched",
    "joined",
    "num_processes",
    "rank",
]

RENDEZVOUS = "SAMCL_RENDEZVOUS"
"""Environment: address where the processes of one train stage meet; ``torchrun`` has variables of its own."""

_TIMEOUT = timedelta(minutes=30)
T = TypeVar("T")


class ProcessLost(TrainingError):
    """Another process of the group has ended; why it did is its own error."""


def is_launched() -> bool:
    """Whether this process was started as one of a group."""
    return RENDEZVOUS in os.environ or (dist.is_available() and dist.is_torchelastic_launched())


def num_processes() -> int:
    """Size of the group; 1 outside of any."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in its group, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and reports progress."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Belong to the group that this process was started for, if any; gives the device of this process.

    Args:
        device: as in ``params.yaml``. ``auto`` and ``cuda`` are the GPU with the process's number on this machine.

    Raises:
        UsageError: there are fewer GPUs than processes, or all processes were given the same one.
    """
    if not is_launched():
        yield device
        return
    number, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    mine = device_of(device, local, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    is_cuda = mine.startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(mine)
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        init_method=os.environ.get(RENDEZVOUS, "env://"),
        rank=number,
        world_size=size,
        timeout=_TIMEOUT,
    )
    yield mine
    # Not after an error: the others may be anywhere, and waiting for them would hide it.
    dist.destroy_process_group()


def device_of(device: str, local: int, num_gpus: int) -> str:
    """The device of process ``local`` of this machine where ``params.yaml`` says ``device``.

    Raises:
        UsageError: there is none.
    """
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return "cpu"
    if device not in ("auto", "cuda"):
        raise UsageError(
            f"device is {device!r} with several processes, expected 'auto', 'cuda' or 'cpu'",
            hint="set device: auto in params.yaml; CUDA_VISIBLE_DEVICES chooses GPUs",
        )
    if local >= num_gpus:
        raise UsageError(
            f"process {local + 1} of this machine has no GPU of its own: {num_gpus} visible, expected one a process",
            hint=f"start {max(1, num_gpus)} process(es): train.processes, or torchrun --nproc-per-node",
        )
    return f"cuda:{local}"


def add_up(vector: Tensor) -> Tensor:
    """The sum of every process's ``vector``, in place, the same bits everywhere.

    Raises:
        ProcessLost: another process has ended.
    """
    if num_processes() > 1:
        _together(lambda: dist.all_reduce(vector))
    return vector


def gathered(value: T) -> list[T]:
    """Every process's ``value``, by rank; nobody goes on before all have come here.

    Raises:
        ProcessLost: another process has ended.
    """
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    _together(lambda: dist.all_gather_object(values, value))
    return values


def _together(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as exc:
        reason = str(exc).partition("\n")[0]
        raise ProcessLost(
            f"process {rank() + 1} of {num_processes()} cannot go on, another one has ended: {reason}",
            hint="see the error of the other process",
        ) from exc
