"""What was champion when, by whom and why: append-only JSON lines, each holding the digest of the one before it.

``ledger.jsonl`` lies in the workspace and is meant for git. A line is written under a lock and flushed to the disk
before the call returns. What a crash leaves of a line is set aside by the next write, and said in the ledger itself.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from samcl_core.errors import SamclError
from samcl_core.files import canonical_json, write_atomic

__all__ = ["FILE", "Entry", "Ledger", "append_entry", "now_utc", "read_ledger", "this_user"]

FILE = "ledger.jsonl"
GENESIS = "0" * 64
"""What stands before the first line."""

MOVES = ("promote", "rollback", "observe")
"""Actions after which another version is champion; ``observe`` is a move that was found, not made here."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        number: 1 for the first line.
        time: UTC, ``2026-01-31T12:00:00Z``.
        actor: ``user@host`` or ``flow run <id>``.
        action: ``promote``, ``refuse``, ``rollback``, ``observe`` (the registry's champion was moved by something
            else), or ``repair`` (an unfinished line was set aside).
        model: registered model.
        version: the version that the line is about; with ``observe`` ``None`` when no champion is there any more.
        bank: content digest of its bank.
        before: version and bank of the champion before, ``None`` without one.
        reason: why.
        forced: promoted although a gate failed.
        gates: the gates as ``Gate.values`` gives them.
        digest: sha256 of the line; not stored in it.
    """

    number: int
    time: str
    actor: str
    action: str
    model: str = ""
    version: str | None = None
    bank: str | None = None
    before: Mapping[str, str] | None = None
    reason: str = ""
    forced: bool = False
    gates: Sequence[Mapping[str, Any]] = ()
    digest: str = ""

    def values(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**vars(self), "gates": [dict(gate) for gate in self.gates]}


@dataclass(frozen=True)
class Ledger:
    """The ledger as it was read.

    Attributes:
        entries: in the order they were written.
        problems: what was changed, removed or cannot be read, one line each; empty when every line follows from the
            one before. Lines cut off at the end cannot be seen here: git and the tags in MLflow hold them, too.
        unfinished: bytes of a last line that was never finished.
    """

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()
    unfinished: bytes = field(default=b"", repr=False)

    def moves(self, model: str) -> list[Entry]:
        """The lines after which another version of ``model`` was champion."""
        return [entry for entry in self.entries if entry.model == model and entry.action in MOVES]

    def champion(self, model: str) -> Entry | None:
        """The line that made the present champion, as far as the ledger knows; ``None`` when there is none."""
        moves = self.moves(model)
        return moves[-1] if moves and moves[-1].version is not None else None

    def predecessors(self, model: str) -> list[Entry]:
        """Champions that the present one followed, oldest first: a promotion adds one, a rollback goes back to one."""
        line: list[Entry] = []
        for entry in self.moves(model):
            if entry.action == "rollback":
                versions = [earlier.version for earlier in line]
                line = line[: versions.index(entry.version)] if entry.version in versions else line[:-1]
            if entry.version is None:
                line = []
            else:
                line.append(entry)
        return line[:-1]

    def rollback_of(self, model: str, bank: str) -> Entry | None:
        """The rollback that took this bank back, unless a person promoted it again since."""
        found = None
        for entry in self.moves(model):
            if entry.action == "rollback" and entry.before is not None and entry.before["bank"] == bank:
                found = entry
            elif entry.bank == bank:
                found = None
        return found

    def reigns(self, model: str) -> list[dict[str, Any]]:
        """Who was champion from when until when (``None``: still), oldest first."""
        moves = self.moves(model)
        ends = [*(entry.time for entry in moves[1:]), None][: len(moves)]
        return [
            {
                "version": entry.version,
                "bank": entry.bank,
                "since": entry.time,
                "until": end,
                "action": entry.action,
                "actor": entry.actor,
                "reason": entry.reason,
                "forced": entry.forced,
            }
            for entry, end in zip(moves, ends, strict=True)
            if entry.version is not None
        ]


def now_utc() -> str:
    """The time as the ledger writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def this_user() -> str:
    """``user@host`` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def read_ledger(root: Path) -> Ledger:
    """The ledger of a workspace; an empty one where nothing was decided yet.

    Raises:
        SamclError: the file cannot be read.
    """
    if not (root / FILE).is_file():
        return Ledger()
    with _alone(root):
        data = _bytes(root / FILE)
    lines, rest = _split(data)
    if rest and _follows(rest, lines):
        lines, rest = [*lines, rest], b""
    entries, problems, before = [], [], GENESIS
    for number, line in enumerate(lines, 1):
        entry, problem = _parse(line, number, before)
        if entry is not None:
            entries.append(entry)
        if problem:
            problems.append(f"{FILE} line {number}: {problem}")
        before = _sha256(line)
    return Ledger(tuple(entries), tuple(problems), rest)


def append_entry(
    root: Path,
    *,
    actor: str,
    action: str,
    model: str,
    version: str | None,
    bank: str | None,
    before: Mapping[str, str] | None = None,
    reason: str = "",
    forced: bool = False,
    gates: Sequence[Mapping[str, Any]] = (),
) -> Entry:
    """Write one line; it is on the disk when this returns. Callers side by side wait for each other.

    Raises:
        SamclError: the disk is full or the file cannot be written; its earlier lines are as they were.
    """
    facts = {
        "actor": actor,
        "action": action,
        "model": model,
        "version": version,
        "bank": bank,
        "before": None if before is None else dict(before),
        "reason": reason,
        "forced": forced,
        "gates": [dict(gate) for gate in gates],
    }
    with _alone(root):
        lines = _repaired(root)
        return _write(root / FILE, lines, facts)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    folder = root / ".samcl" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "ledger.lock"):
        yield


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise SamclError(f"{path} cannot be read: {exc.strerror or exc}", hint=f"git checkout {FILE}") from exc


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Finished lines and what stands after the last line end."""
    *lines, rest = data.split(b"\n")
    return lines, rest


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _follows(line: bytes, lines: Sequence[bytes]) -> bool:
    """Whether an unfinished line lacks nothing but its line end."""
    return _parse(line, len(lines) + 1, _sha256(lines[-1]) if lines else GENESIS)[1] == ""


def _parse(line: bytes, number: int, before: str) -> tuple[Entry | None, str]:
    """The entry of a line, and what is wrong with it."""
    try:
        values = json.loads(line)
        known = {name: values[name] for name in Entry.__dataclass_fields__ if name != "digest"}
        previous = values["previous"]
    except (ValueError, TypeError, KeyError) as exc:
        return None, f"is no entry ({type(exc).__name__}: {str(exc)[:80]})"
    entry = Entry(**known, digest=_sha256(line))
    if previous != before:
        return entry, "does not follow from the line before it: one of the two was changed, or lines are missing"
    if entry.number != number:
        return entry, f"has number {entry.number}"
    return entry, ""


def _repaired(root: Path) -> list[bytes]:
    """The lines of the file, after what a crash left of the last one was completed or set aside."""
    path = root / FILE
    lines, rest = _split(_bytes(path))
    if not rest:
        return lines
    if _follows(rest, lines):
        _append_bytes(path, b"\n")
        return [*lines, rest]
    aside = root / f"{FILE}.unfinished-{_sha256(rest)[:8]}"
    write_atomic(aside, rest)
    os.truncate(path, sum(len(line) + 1 for line in lines))
    said: dict[str, Any] = {
        "actor": this_user(),
        "action": "repair",
        "model": "",
        "version": None,
        "bank": None,
        "before": None,
        "reason": f"{len(rest)} bytes of a line that was never finished were set aside in {aside.name}",
        "forced": False,
        "gates": [],
    }
    _write(path, lines, said)
    return _split(_bytes(path))[0]


def _write(path: Path, lines: Sequence[bytes], facts: Mapping[str, Any]) -> Entry:
    """Append an entry after ``lines``, which are all lines of the file."""
    before = _sha256(lines[-1]) if lines else GENESIS
    number = len(lines) + 1
    line = canonical_json({**facts, "number": number, "time": now_utc(), "previous": before}).encode()
    _append_bytes(path, line + b"\n")
    entry, problem = _parse(line, number, before)
    assert entry is not None and not problem
    return entry


def _append_bytes(path: Path, data: bytes) -> None:
    is_new = not path.exists()
    try:
        with path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            _sync_folder(path.parent)
    except OSError as exc:
        raise SamclError(
            f"cannot write {path}: {exc.strerror or exc}",
            hint="free disk space or permissions, then run the same command again",
        ) from exc


def _sync_folder(folder: Path) -> None:
    """The name of a new file is on the disk, too; systems that cannot do this need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
