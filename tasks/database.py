"""An empty database of this Prefect version, kept for the next workspace: its migrations take Prefect 10 s."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from importlib.metadata import version
from pathlib import Path

__all__ = ["keep_empty", "start_from_empty"]


def _kept() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(cache) if cache else Path.home() / ".cache") / "samcl"
    return folder / f"prefect-{version('prefect')}.db"


def start_from_empty(database: Path) -> bool:
    """Begin a new database with the kept one; False when there is none or ``database`` exists. Never fails."""
    if database.exists():
        return False
    # Prefect migrates what it finds, so a kept file that cannot be copied costs time and nothing else.
    with contextlib.suppress(OSError):
        partial = database.with_suffix(".part")
        shutil.copyfile(_kept(), partial)
        partial.replace(database)
        return True
    return False


def keep_empty(database: Path) -> bool:
    """Keep a database that was just made; False when one is kept or the cache cannot be written. Never fails."""
    target = _kept()
    if target.exists():
        return False
    with contextlib.suppress(OSError, sqlite3.Error):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
        os.close(handle)
        try:
            source = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
            copy = sqlite3.connect(name)
            with contextlib.closing(source), contextlib.closing(copy):
                source.backup(copy)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
        return True
    return False
