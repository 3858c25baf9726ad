"""Cases of ``samcl bench``: what one is, the registry, and how one is measured."""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from samcl_core import __version__
from samcl_core.errors import UsageError
from samcl_core.progress import Progress, silent

__all__ = [
    "Arm",
    "Case",
    "Measurement",
    "case_names",
    "get_case",
    "machine_facts",
    "measure_case",
    "register_case",
]

Arm = Callable[[], Any]
"""One way to do the work of a case, once. Everything before it (data, models) is made outside of the measurement."""


class Case(Protocol):
    """Something that is done in two ways on the same data.

    Attributes:
        name: what ``samcl bench`` calls it.
        title: one line: what is done.
        baseline: one line: what the baseline does.
    """

    name: str
    title: str
    baseline: str

    def arms(self, folder: Path, size: int | None, progress: Progress) -> tuple[Arm, Arm]:
        """Make what the case needs in an empty folder.

        Args:
            folder: empty, the case's own.
            size: how much work, in the case's unit; ``None`` for the case's default.
            progress: told what is made.

        Returns:
            The baseline and our way.
        """
        ...


@dataclass(frozen=True)
class Measurement:
    """What a case took.

    Attributes:
        case: its name.
        title: what is done.
        baseline: what the baseline does.
        size: how much work; ``None`` for the default.
        baseline_s: seconds of each repetition of the baseline.
        ours_s: seconds of each repetition of our way.
    """

    case: str
    title: str
    baseline: str
    size: int | None
    baseline_s: tuple[float, ...]
    ours_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the baseline by median of our way: above 1 ours is faster."""
        return median(self.baseline_s) / median(self.ours_s)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with medians and the ratio."""
        medians = {"baseline_median_s": median(self.baseline_s), "ours_median_s": median(self.ours_s)}
        return {**asdict(self), **medians, "ratio": self.ratio}


_CASES: dict[str, Case] = {}


def register_case(case: Case) -> None:
    """Make a case known.

    Raises:
        ValueError: another case has this name.
    """
    if case.name in _CASES:
        raise ValueError(f"case {case.name!r} is registered already")
    _CASES[case.name] = case


def case_names() -> tuple[str, ...]:
    """Names of all cases."""
    return tuple(_CASES)


def get_case(name: str) -> Case:
    """The case called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in _CASES:
        raise UsageError(f"case {name!r} is unknown, expected one of {', '.join(_CASES)}", hint="samcl bench --help")
    return _CASES[name]


def measure_case(
    case: Case, folder: Path, *, size: int | None = None, repeats: int = 5, progress: Progress = silent
) -> Measurement:
    """Run both arms in turns, so that what else the machine does meets both alike.

    The first turn warms up and does not count. The arm that begins changes from turn to turn.

    Args:
        case: what to measure.
        folder: an empty folder of its own.
        size: how much work; ``None`` for the case's default.
        repeats: turns that count, at least 1.
        progress: told after each turn.
    """
    arms = case.arms(folder, size, progress)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            taken = _timed(arms[which])
            if turn:
                seconds[which].append(taken)
        progress(f"{case.name}: repetitions", turn, repeats)
    return Measurement(case.name, case.title, case.baseline, size, tuple(seconds[0]), tuple(seconds[1]))


def machine_facts() -> dict[str, Any]:
    """What a number of seconds says nothing without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "samcl": __version__,
        "python": sys.version.split()[0],
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": cores,
        "load_average": None if load is None else [round(value, 2) for value in load],
    }


def _timed(arm: Arm) -> float:
    gc.collect()
    start = time.perf_counter()
    arm()
    return time.perf_counter() - start
