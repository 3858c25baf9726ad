"""Processes that must not outlive the command that started them: groups, records on disk, leftovers of killed runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from samcl_core.files import write_json

__all__ = ["Record", "clean_environment", "end_group", "read_record", "same_process", "this_process", "write_record"]

Record = dict[str, Any]
_GRACE_S = 5.0
_START_TOLERANCE_S = 1.0


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a step: this interpreter's commands first, no analytics, no git variables of a hook."""
    env = {key: value for key, value in os.environ.items() if key not in {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env |= {"DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    return env | (extra or {})


def write_record(path: Path, pid: int, **more: Any) -> Record:
    """Write down a process with its start time, so that a later process with the same number is not taken for it."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = 0.0
    record = {"pid": pid, "started": started, **more}
    write_json(path, record)
    return record


def this_process() -> Record:
    """The record of the process that runs this."""
    return {"pid": os.getpid(), "started": psutil.Process().create_time()}


def read_record(path: Path) -> Record | None:
    """The record, or ``None`` when there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record["pid"], int) and isinstance(record["started"], float | int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def same_process(record: Record) -> bool:
    """Whether exactly the recorded process lives."""
    try:
        process = psutil.Process(record["pid"])
        is_same: bool = abs(process.create_time() - float(record["started"])) < _START_TOLERANCE_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_group(pgid: int, *, command_has: str | None = None) -> int:
    """End every process of a group and what they started: asked first, killed after 5 s.

    Args:
        pgid: number of the group; never this process's own.
        command_has: when given, only a group of which some process has this text in its command line is ended. A
            group whose leader is gone is recognised by it.

    Returns:
        How many processes were ended.
    """
    members = [process for process in psutil.process_iter() if _group_of(process.pid) == pgid]
    if not members or pgid == os.getpgrp():
        return 0
    if command_has is not None and not any(command_has in _command(process) for process in members):
        return 0
    everyone = {process.pid: process for process in members}
    for process in members:
        with contextlib.suppress(psutil.Error):
            everyone |= {child.pid: child for child in process.children(recursive=True)}
    for process in everyone.values():
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(list(everyone.values()), timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)
    return len(everyone)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
