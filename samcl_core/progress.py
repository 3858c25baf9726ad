"""How the core reports progress without printing: a callable that the caller gives."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``; called often, must be cheap; ``total`` 0 when unknown."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
