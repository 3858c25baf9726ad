"""The stages of a run as they happen: bars on a terminal, one line a finished stage everywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.cli.output import is_terminal, note

if TYPE_CHECKING:
    from samcl_core.progress import Progress

__all__ = ["Board"]

_SIGNS = {"ran": "ran", "cached": "from cache", "skipped": "up to date", "failed": "FAILED"}


class Board:
    """Shows which stage of which domain runs, how far it is, and how it ended. Stages may run side by side.

    Attributes:
        outcomes: stage to ``ran``, ``cached``, ``skipped`` or ``failed``, in the order in which they ended.
        seconds: stage to wall-clock seconds.
    """

    def __init__(self, is_quiet: bool = False) -> None:
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._quiet = is_quiet
        self._started: dict[str, float] = {}
        self._bars: Any = None
        self._rows: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Board:
        if is_terminal() and not self._quiet:
            self._bars = _new_bars()
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def started(self, stage: str) -> None:
        """A stage is taken up."""
        with self._lock:
            self._started.setdefault(stage, time.monotonic())
            if self._bars is not None and stage not in self._rows:
                self._rows[stage] = self._bars.add_task(stage, total=None, what="")

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        """How far a stage is; ``total`` 0 when unknown."""
        with self._lock:
            self.started(stage)
            if self._bars is not None:
                self._bars.update(self._rows[stage], completed=done, total=total or None, what=what)

    def ended(self, stage: str, outcome: str) -> None:
        """A stage is over: ``ran``, ``cached``, ``skipped`` or ``failed``."""
        with self._lock:
            seconds = time.monotonic() - self._started.pop(stage, time.monotonic())
            self.outcomes[stage] = outcome
            self.seconds[stage] = round(seconds, 2)
            if self._bars is not None and stage in self._rows:
                self._bars.remove_task(self._rows.pop(stage))
            self._line(f"{stage:<28} {_SIGNS.get(outcome, outcome):<10} {seconds:7.1f} s")

    def run(self, stage: str, call: Callable[[Progress], str]) -> str:
        """Call ``call`` with a progress for ``stage`` and show how it ended; returns its outcome."""
        self.started(stage)
        outcome = "failed"
        try:
            outcome = call(lambda what, done, total: self.progress(stage, what, done, total))
        finally:
            self.ended(stage, outcome)
        return outcome

    def message(self, text: str) -> None:
        """One line between the stages."""
        with self._lock:
            self._line(text)

    def values(self) -> dict[str, Any]:
        """Stage to outcome and seconds, as JSON values."""
        return {stage: {"outcome": outcome, "seconds": self.seconds[stage]} for stage, outcome in self.outcomes.items()}

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        if self._bars is None:
            note(text)
        else:
            self._bars.console.print(text, markup=False, highlight=False)


def _new_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
