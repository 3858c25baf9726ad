"""GPUs of this machine: how many there are, and which one a step gets while others run beside it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from samcl_core.config import Params

__all__ = ["Slot", "device_slot", "num_gpus", "slot_of", "visible_devices"]

_NETWORK_STAGES = frozenset({"embed", "train", "base", "evaluate"})
_MAX_SHARING = 64


@dataclass(frozen=True)
class Slot:
    """A device for one step.

    Attributes:
        device: its name for CUDA, ``None`` where the step chooses by itself.
        environment: what the step's process must be told.
        handles: open files that stand for the slot. A process that inherits them keeps the slot as long as it lives.
    """

    device: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    handles: tuple[int, ...] = ()


def visible_devices(most: int | None = None) -> tuple[str, ...]:
    """Names of the CUDA devices that this process may use, ``most`` at most; empty without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name.strip() for name in visible.split(",")]
        return tuple(name for name in found if name not in {"", "-1"})[:most]
    return tuple(str(number) for number in range(_num_installed()))[:most]


def _num_installed() -> int:
    if shutil.which("nvidia-smi") is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            command = ["nvidia-smi", "-L"]
            listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    # Containers often come without the tool.
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").glob("nvidia*"))


def num_gpus(most: int | None = None) -> int:
    """How many trainings may run at a time, at least 1: without a GPU one training at a time uses the CPU."""
    return max(1, len(visible_devices(most)))


@contextmanager
def slot_of(target: str, params: Params) -> Iterator[Slot]:
    """The slot of a pipeline step, released at the end of the block.

    A step gets a device of its own only where there are several to choose from and the settings name none. A training
    of several processes sees all of them.
    """
    stage, _, domain = target.partition("@")
    wants, is_shared = params.device in ("auto", "cuda"), stage == "train" and _num_processes(params, domain) > 1
    devices = visible_devices(params.pipeline.gpus) if stage in _NETWORK_STAGES and wants else ()
    if len(devices) < 2 or is_shared:
        yield Slot(environment={"CUDA_VISIBLE_DEVICES": ",".join(devices)} if is_shared and devices else {})
        return
    with device_slot(devices) as slot:
        yield slot


def _num_processes(params: Params, domain: str) -> int:
    return params.train_of(domain).processes if domain in params.modules else params.train.processes


@contextmanager
def device_slot(devices: Sequence[str], folder: Path | None = None) -> Iterator[Slot]:
    """The least used of ``devices``. It never waits: how many steps run at a time is up to the limit ``gpu``.

    Slots are locks of the operating system on files of this machine, shared by all of a user's workspaces: a killed
    process leaves none behind.

    Args:
        devices: names for ``CUDA_VISIBLE_DEVICES``, at least one.
        folder: where the lock files are; by default one a user in the folder for temporary files.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"samcl-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    device, handle = _take(devices, folder)
    try:
        yield Slot(device, {"CUDA_VISIBLE_DEVICES": device}, (handle,))
    finally:
        # Closed, not unlocked: a child that was left behind still computes on the device.
        os.close(handle)


def _take(devices: Sequence[str], folder: Path) -> tuple[str, int]:
    with _alone(folder):
        used = {device: _holders(device, folder) for device in devices}
        device = min(devices, key=lambda name: len(used[name]))
        free = next(number for number in range(_MAX_SHARING + 1) if number not in used[device])
        handle = _lock(_file(folder, device, free))
        assert handle is not None, "nobody else takes slots inside the block"
        return device, handle


def _holders(device: str, folder: Path) -> set[int]:
    """Numbers of the device's locks that are held."""
    held = set()
    for number in range(_MAX_SHARING):
        path = _file(folder, device, number)
        if not path.exists():
            break
        handle = _lock(path)
        if handle is None:
            held.add(number)
        else:
            os.close(handle)
    return held


def _file(folder: Path, device: str, number: int) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', device)}.{number}"


def _lock(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    handle = os.open(folder / "choosing", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
