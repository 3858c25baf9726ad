"""Ending what runs side by side: threads and worker processes cannot be interrupted, so they look at a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from samcl_core.errors import SamclError

__all__ = ["Ended", "can_end", "check_ending", "ended_by"]

_FLAG: ContextVar[Path | None] = ContextVar("samcl_ending", default=None)


class Ended(SamclError):
    """The flow that wanted this work was interrupted."""


@contextmanager
def ended_by(flag: Path) -> Iterator[None]:
    """Steps and waits inside the block end when ``flag`` appears."""
    token = _FLAG.set(flag)
    try:
        yield
    finally:
        _FLAG.reset(token)


def can_end() -> bool:
    """Whether the code that runs now is inside ``ended_by``."""
    return _FLAG.get() is not None


def check_ending() -> None:
    """Go on, unless the work around this shall end.

    Raises:
        Ended: it shall.
    """
    flag = _FLAG.get()
    if flag is not None and flag.exists():
        raise Ended("interrupted", hint="the same command again continues")
