"""What commands say, and where: answers on stdout, progress and errors on stderr, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from rich.console import Console
    from rich.progress import Progress as Bars

    from samcl_core.config import Params

__all__ = [
    "Settings",
    "StepProgress",
    "brief",
    "complain",
    "emit_json",
    "is_terminal",
    "note",
    "say",
    "show_r_matrix",
    "show_table",
]

PROGRESS_FILE = "SAMCL_PROGRESS_FILE"
_THROTTLE_S = 0.2
_PLAIN_EVERY_S = 10.0
_DIGEST_CHARS = 12


@dataclass(frozen=True)
class Settings:
    """What was given before the command.

    Attributes:
        start: folder from which the workspace is looked for, upwards.
    """

    start: Path

    def root(self) -> Path:
        """The workspace's folder.

        Raises:
            UsageError: there is none at ``start`` or above it.
        """
        from tasks.workspace import find_workspace

        return find_workspace(self.start)


def is_terminal() -> bool:
    """Whether a person watches: progress bars are drawn on a terminal only."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str = "") -> None:
    """One line of the answer."""
    print(text, flush=True)


def note(text: str) -> None:
    """One line beside the answer: progress, advice."""
    print(text, file=sys.stderr, flush=True)


def complain(message: str, hint: str = "") -> None:
    """An error: what is wrong, then the next command to try."""
    note(f"error: {message}")
    if hint:
        note(f"next: {hint}")


def emit_json(value: Any) -> None:
    """``value`` as the whole answer. A number that does not exist is ``null``."""
    say(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def brief(values: Mapping[str, Any]) -> str:
    """A summary as one line ``name=value``: digests shortened, numbers rounded, lists joined."""
    return " ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_short(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ",".join(_short(inner) for inner in value) or "none"
    text = str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:_DIGEST_CHARS] if is_digest else text


def _console() -> Console:
    from rich.console import Console

    # A file or pipe has no width: do not wrap what a program may read.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, numbers: bool = False) -> None:
    """A table on stdout; with ``numbers`` every column but the first is right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if numbers and position else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def show_r_matrix(frame: pandas.DataFrame, params: Params, metric: str = "iou") -> None:
    """The R matrix of one metric: rows are steps, row 0 is the plain backbone."""
    from samcl_core.evaluation.tables import r_matrix_rows

    header, rows = r_matrix_rows(frame, metric, params.steps(), fits=params.fits())
    show_table(header, rows, f"R matrix, {metric} on the test images", numbers=True)


class StepProgress:
    """The progress of one step: JSON lines for the flow that runs it, a bar for a person, else now and then a line.

    ``SAMCL_PROGRESS_FILE`` names the file for JSON lines ``{"what", "done", "total"}``; a call that comes less than
    0.2 s after the last line is left out, unless it ends its phase. Lines for people come every 10 s.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._file = os.environ.get(PROGRESS_FILE)
        self._next = 0.0 if self._file or is_terminal() else time.monotonic() + _PLAIN_EVERY_S
        self._bars: Bars | None = None
        self._bar: Any = None

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_end = total > 0 and done >= total and bool(self._file)
        if now < self._next and not is_end:
            return
        self._next = now + (_THROTTLE_S if self._file or is_terminal() else _PLAIN_EVERY_S)
        if self._file:
            self._write(self._file, what, done, total)
        elif is_terminal():
            self._draw(what, done, total)
        else:
            note(f"{self._title}: {what} {done}/{total or '?'}")

    def _write(self, file: str, what: str, done: int, total: int) -> None:
        line = json.dumps({"what": what, "done": done, "total": total})
        try:
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError:
            # Progress is a courtesy; a full disk shows itself where the results are written.
            self._file = None

    def _draw(self, what: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
            self._bar = self._bars.add_task(self._title, total=None)
        self._bars.update(self._bar, description=f"{self._title}: {what}", completed=done, total=total or None)
