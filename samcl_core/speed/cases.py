"""Cases of ``samcl bench``: what one is, the registry, and how one is measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from samcl_core.errors import UsageError
from samcl_core.progress import Progress, silent

__all__ = [
    "GROUPS",
    "Arm",
    "Arms",
    "Case",
    "Measurement",
    "Setup",
    "Spent",
    "case_names",
    "find_cases",
    "get_case",
    "measure_case",
    "register_case",
]

Arm = Callable[[], Any]
"""One way to do the work of a case, once. Everything before it (data, models) is made outside of the measurement.

What it returns is what it computed, so that tests can compare both arms. Its wall-clock time is what it took, unless it
returns ``Spent``.
"""

GROUPS = ("all", "cpu", "gpu")
"""``cpu``: what two cores measure in about ten minutes; ``gpu``: what a CUDA device makes faster."""


@dataclass(frozen=True)
class Spent:
    """What an arm measured itself.

    Attributes:
        amount: in the unit of its case, above 0.
        result: what it computed.
    """

    amount: float
    result: Any = None


@dataclass(frozen=True)
class Arms:
    """The two ways of a case, ready to run.

    Attributes:
        baseline: the one to compare with.
        ours: our way.
        about: JSON values that say what was measured: images, batch size, weights.
    """

    baseline: Arm
    ours: Arm
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a case makes its arms with.

    Attributes:
        folder: empty, the case's own.
        size: how much work, in the case's unit; ``None`` for the case's default.
        device: what torch calls it: ``cpu``, ``cuda``.
        progress: told what is made.
    """

    folder: Path
    size: int | None = None
    device: str = "cpu"
    progress: Progress = silent

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return torch.device(self.device).type == "cuda"


@dataclass(frozen=True)
class Case:
    """Something that is done in two ways on the same data.

    Attributes:
        name: what ``samcl bench`` calls it.
        title: one line: what is done, and what the size counts.
        baseline: one line: what the baseline does.
        arms: makes both ways, in an empty folder.
        targets: the least ratio that the project wants, by kind of device.
        groups: groups besides ``all``.
        repeats: turns that count, where nobody says how many.
        warm_ups: turns before these.
        unit: ``s``, or ``bytes`` where the arms return ``Spent``.
    """

    name: str
    title: str
    baseline: str
    arms: Callable[[Setup], Arms] = field(repr=False)
    targets: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    repeats: int = 5
    warm_ups: int = 1
    unit: str = "s"


@dataclass(frozen=True)
class Measurement:
    """What a case took.

    Attributes:
        case: its name.
        title: what is done.
        baseline: what the baseline does.
        device: kind of device: ``cpu``, ``cuda``.
        size: how much work; ``None`` for the default.
        unit: of the runs, ``s`` or ``bytes``.
        target: the least ratio that the project wants on this device, or ``None``.
        baseline_runs: each repetition of the baseline.
        ours_runs: each repetition of our way.
        about: what was measured.
    """

    case: str
    title: str
    baseline: str
    device: str
    size: int | None
    unit: str
    target: float | None
    baseline_runs: tuple[float, ...]
    ours_runs: tuple[float, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of the baseline by median of our way: above 1 ours is faster, or smaller."""
        return median(self.baseline_runs) / median(self.ours_runs)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with medians and the ratio."""
        medians = {"baseline_median": median(self.baseline_runs), "ours_median": median(self.ours_runs)}
        return {**asdict(self), **medians, "ratio": self.ratio}


_CASES: dict[str, Case] = {}


def register_case(case: Case) -> None:
    """Make a case known.

    Raises:
        ValueError: another case has this name, or it is the name of a group.
    """
    if case.name in _CASES or case.name in GROUPS:
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
        raise UsageError(f"case {name!r} is unknown, expected one of {', '.join(_CASES)}", hint="samcl bench --list")
    return _CASES[name]


def find_cases(names: Iterable[str]) -> list[Case]:
    """Cases by name, by group, or by the first words of their names (``evaluate``), each once, in order.

    Raises:
        UsageError: a name says nothing.
    """
    found: dict[str, Case] = {}
    for name in names:
        if name in _CASES:
            chosen = [_CASES[name]]
        elif name in GROUPS:
            chosen = [case for case in _CASES.values() if name == "all" or name in case.groups]
        else:
            chosen = [case for case in _CASES.values() if case.name.startswith(f"{name}-")]
        for case in chosen or [get_case(name)]:
            found[case.name] = case
    return list(found.values())


def measure_case(
    case: Case,
    folder: Path,
    *,
    size: int | None = None,
    repeats: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Measurement:
    """Run both arms in turns, so that what else the machine does meets both alike.

    The first turn warms up and does not count. The arm that begins changes from turn to turn.

    Args:
        case: what to measure.
        folder: an empty folder of its own.
        size: how much work; ``None`` for the case's default.
        repeats: turns that count, at least 1; ``None`` for the case's default.
        device: where both arms run.
        progress: told after each arm.
    """
    setup = Setup(folder, size, device, progress)
    arms = case.arms(setup)
    turns = case.warm_ups + (repeats or case.repeats)
    runs: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for position, which in enumerate((0, 1) if turn % 2 else (1, 0)):
            progress(f"{case.name}: {('baseline', 'ours')[which]}", 2 * turn + position, 2 * turns)
            spent = _measured(arms.ours if which else arms.baseline, setup)
            if turn >= case.warm_ups:
                runs[which].append(spent)
    progress(f"{case.name}: done", 2 * turns, 2 * turns)
    kind = torch.device(device).type
    target = case.targets.get(kind)
    done = (tuple(runs[0]), tuple(runs[1]))
    return Measurement(case.name, case.title, case.baseline, kind, size, case.unit, target, *done, arms.about)


def _measured(arm: Arm, setup: Setup) -> float:
    gc.collect()
    _wait(setup)
    start = time.perf_counter()
    result = arm()
    _wait(setup)
    return result.amount if isinstance(result, Spent) else time.perf_counter() - start


def _wait(setup: Setup) -> None:
    """A CUDA device works on when the call that gave it work has returned."""
    if setup.is_cuda:
        torch.cuda.synchronize(setup.device)
