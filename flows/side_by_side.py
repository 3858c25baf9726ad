"""What concerns one domain alone, for several domains at a time: modules are independent of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.own_part import Arrival, Progressing, is_due, learn, take_in
from samcl_core.errors import SamclError
from samcl_core.files import write_atomic
from tasks.ending import Ended, ended_by
from tasks.runners import task_runner, thread_settings, use_thread_settings
from tasks.steps import tell_outcomes
from tasks.workspace import Workspace

__all__ = ["Parts", "side_by_side"]


@dataclass(frozen=True)
class _Part:
    """What came of one domain's own stages.

    Attributes:
        outcomes: stage to what DVC did, in order.
        changed: its data or its module is another one than before.
    """

    outcomes: dict[str, str]
    changed: bool


@dataclass(frozen=True)
class _Flags:
    """Files that tell the tasks of one flow run to begin nothing more, or to end at once.

    Attributes:
        stop: holds the number of a domain; no domain after it is begun.
        end: when it is there, everything ends.
        is_stopping: a domain that fails writes ``stop``.
    """

    stop: Path
    end: Path
    is_stopping: bool

    @staticmethod
    def new(workspace: Workspace, *, is_stopping: bool) -> _Flags:
        folder = workspace.state / "run"
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid4().hex
        return _Flags(folder / f"{name}.stop", folder / f"{name}.end", is_stopping)

    def stop_after(self, number: int) -> None:
        """Let no domain after the one with this number begin."""
        if not self.is_stopped(number):
            write_atomic(self.stop, str(number).encode())

    def is_stopped(self, number: int) -> bool:
        """Whether this domain may not begin any more."""
        return self.stop.exists() and int(self.stop.read_text()) < number

    def clear(self) -> None:
        self.stop.unlink(missing_ok=True)
        self.end.unlink(missing_ok=True)


@task(name="domain", task_run_name="{arrival.domain}", cache_policy=NO_CACHE)
def _do_part(
    root: Path,
    arrival: Arrival,
    number: int,
    stale: frozenset[str] | None,
    received: frozenset[str],
    flags: _Flags,
    threads: dict[str, str | None],
) -> _Part:
    """Take a domain in and, with role ``learn``, train its module; in whatever process the runner chose."""
    if flags.is_stopped(number):
        raise Ended("the flow stopped before this domain was begun", hint="the same command again continues")
    use_thread_settings(threads)
    try:
        with ended_by(flags.end):
            return _part_of(Progressing(Workspace(root), stale, received), arrival)
    except BaseException:
        if flags.is_stopping:
            flags.stop_after(number)
        raise


def _part_of(progress: Progressing, arrival: Arrival) -> _Part:
    changed = take_in(progress, arrival)
    if arrival.role == "learn":
        changed |= learn(progress, arrival.domain)
    return _Part(dict(progress.outcomes), changed)


class Parts:
    """The domains' own stages, running or waiting to run."""

    def __init__(self, progress: Progressing, flags: _Flags) -> None:
        self._progress = progress
        self._flags = flags
        self._futures: dict[str, Any] = {}
        self._is_remote = False

    def submit(
        self, runner: Any, arrivals: Sequence[Arrival], threads: dict[str, str | None], *, is_remote: bool
    ) -> None:
        """Hand domains to a task runner, whose processes shall start steps with these thread settings."""
        self._is_remote = is_remote
        progress = self._progress
        common = {
            "root": progress.workspace.root,
            "stale": progress.stale,
            "received": frozenset(progress.received),
            "threads": threads,
        }
        for number, arrival in enumerate(arrivals):
            own = {"arrival": arrival, "number": number, "flags": self._flags}
            self._futures[arrival.domain] = runner.submit(_do_part, {**own, **common})

    def finish(self, arrival: Arrival) -> None:
        """Wait for a domain's own stages, or run them now; their outcomes are those of ``progress`` afterwards.

        Raises:
            SamclError: one of them failed.
        """
        progress = self._progress
        progress.outcomes = {}
        future = self._futures.get(arrival.domain)
        if future is None:
            own = Progressing(progress.workspace, progress.stale, frozenset(progress.received))
            try:
                part = _part_of(own, arrival)
            finally:
                progress.outcomes = own.outcomes
        else:
            part = future.result()
            progress.outcomes = dict(part.outcomes)
            if self._is_remote:
                tell_outcomes(part.outcomes)
        if part.changed:
            # The bank before the first step knows the natural and unseen domains, so every step follows them.
            progress.touch(arrival.domain if arrival.role == "learn" else None)

    def end(self, error: BaseException) -> None:
        """Begin nothing more. What runs is finished after an error of ours, whose next command needs it; else ended."""
        self._flags.stop_after(-1)
        if not isinstance(error, SamclError):
            self._flags.end.touch()
        for future in self._futures.values():
            with suppress(Exception):
                future.wait()


@contextmanager
def side_by_side(progress: Progressing, arrivals: Sequence[Arrival], *, is_stopping: bool = True) -> Iterator[Parts]:
    """Run the stages of ``arrivals`` that are due, several domains at a time, on the runner that the settings name.

    A single domain needs no threads, and one that is up to date needs no runner at all.

    Args:
        progress: of the flow run.
        arrivals: in the order in which they are begun.
        is_stopping: when a domain fails, those after it are not begun; those that were begun are finished.

    Raises:
        UsageError: the runner is not installed.
        SamclError: the runner cannot be reached.
    """
    params = progress.workspace.params().pipeline
    due = [arrival for arrival in arrivals if is_due(progress, arrival)]
    flags = _Flags.new(progress.workspace, is_stopping=is_stopping)
    parts = Parts(progress, flags)
    with ExitStack() as stack:
        stack.callback(flags.clear)
        is_remote = params.runner == "dask"
        if len(due) > 1 or (due and is_remote):
            threads = thread_settings()
            runner = stack.enter_context(task_runner(params, len(due)))
            use_thread_settings(threads)
            parts.submit(runner, due, threads, is_remote=is_remote)
        try:
            yield parts
        except BaseException as exc:
            parts.end(exc)
            raise
