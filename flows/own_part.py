"""What concerns one domain alone: it is received, checked, embedded and learnt. Nothing here reads another domain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samcl_core.errors import UsageError
from tasks import dvc
from tasks.limits import held
from tasks.names import check_name
from tasks.steps import declare, receive, run_stage, track_training
from tasks.workspace import Workspace

__all__ = ["Arrival", "Progressing", "check_arrivals", "is_due", "learn", "source_of", "take_in"]

_STAGES = ("ingest", "points", "embed")


@dataclass(frozen=True)
class Arrival:
    """One data set that arrives.

    Attributes:
        domain: its name in the workspace.
        source: the folder that holds it; ``None`` for one that is in ``data/raw`` already.
        role: ``learn``, ``natural`` (what plain SAM must keep) or ``unseen`` (evaluated only).
        format: name of its layout, ``auto`` to detect it.
        label: a text for people.
        options: what its files do not say (see ``SourceParams``).
    """

    domain: str
    source: str | None = None
    role: str = "learn"
    format: str = "auto"
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Progressing:
    """The stages of one flow run.

    As long as nothing ran, what one ``dvc status`` at the start found clean needs no process of its own. Later, a step
    of the stream that was brought up to date stays so until its own domain or a step before it changes.

    Attributes:
        workspace: where the stages run.
        outcomes: stage to what DVC did, in the order of the run.
        stale: what one look at the start found not up to date; ``None`` where it could not look.
        received: domains whose data in the workspace was found to be that of their source.
        settled: ``base`` and the steps that this flow run brought up to date.
        warnings: what went wrong without failing the run.
    """

    def __init__(
        self, workspace: Workspace, stale: frozenset[str] | None, received: frozenset[str] = frozenset()
    ) -> None:
        self.workspace = workspace
        self.outcomes: dict[str, str] = {}
        self.stale = stale
        self.received = set(received)
        self.settled: set[str] = set()
        self.warnings: list[str] = []
        self._is_untouched = stale is not None

    @staticmethod
    def begun(workspace: Workspace) -> Progressing:
        """After one look at everything."""
        try:
            return Progressing(workspace, frozenset(dvc.status(workspace.root)))
        except dvc.Busy:
            # Another command's step runs: each stage is asked for by itself, and waits where it has to.
            return Progressing(workspace, None)

    @property
    def is_untouched(self) -> bool:
        """Nothing ran or changed so far."""
        return self._is_untouched

    def touch(self, domain: str | None = None) -> None:
        """Something changed: DVC is asked stage by stage from now on, and ``domain``'s step (or every one) again."""
        self._is_untouched = False
        if domain is None:
            self.settled.clear()
        else:
            self.settled.discard(domain)

    def is_clean(self, target: str) -> bool:
        """Whether the status at the start still holds and finds ``target`` up to date."""
        return self._is_untouched and self.stale is not None and target not in self.stale

    def run(self, target: str) -> dvc.Outcome:
        """Bring a stage up to date."""
        outcome: dvc.Outcome = "skipped" if self.is_clean(target) else run_stage(self.workspace.root, target)
        if outcome != "skipped":
            self._is_untouched = False
        self.outcomes[target] = outcome
        return outcome


def check_arrivals(workspace: Workspace, arrivals: Sequence[Arrival]) -> None:
    """Look at every source before anything is changed.

    Raises:
        UsageError: a name, role or source cannot be, or a name comes twice.
    """
    declared = workspace.params().domains
    seen: set[str] = set()
    for arrival in arrivals:
        check_name(arrival.domain)
        if arrival.domain in seen:
            raise UsageError(f"domain {arrival.domain!r} comes twice", hint="give each folder a name of its own")
        seen.add(arrival.domain)
        known = declared.get(arrival.domain)
        if known is not None and known.role != arrival.role:
            raise UsageError(
                f"domain {arrival.domain!r} is declared with role {known.role!r}, not {arrival.role!r}",
                hint=f"choose another name, or `samcl remove {arrival.domain}` first",
            )
        dvc.check_source(workspace.root, source_of(workspace, arrival), arrival.domain)


def source_of(workspace: Workspace, arrival: Arrival) -> Path:
    """The folder an arrival comes from."""
    if arrival.source is None:
        return workspace.places.raw(arrival.domain)
    return Path(arrival.source).expanduser().resolve()


def take_in(progress: Progressing, arrival: Arrival) -> bool:
    """Receive, declare, ingest, points and embed: what every role needs; True when anything changed."""
    workspace, domain = progress.workspace, arrival.domain
    changed = not _is_received(progress, arrival) and receive(workspace.root, source_of(workspace, arrival), domain)
    changed |= declare(workspace.root, domain, arrival.role, arrival.format, arrival.label, arrival.options)
    if changed:
        progress.touch(domain)
    for stage in _STAGES:
        changed |= progress.run(f"{stage}@{domain}") != "skipped"
    return changed


def _is_received(progress: Progressing, arrival: Arrival) -> bool:
    raw = progress.workspace.places.raw(arrival.domain)
    tracked = raw.with_name(f"{raw.name}.dvc")
    if not tracked.is_file() or not progress.is_clean(f"data/raw/{tracked.name}"):
        return False
    source = source_of(progress.workspace, arrival)
    # Every byte is compared: once a flow run is enough.
    if arrival.domain in progress.received or source == raw or dvc.same_tree(source, raw):
        progress.received.add(arrival.domain)
        return True
    return False


def is_due(progress: Progressing, arrival: Arrival) -> bool:
    """Whether a domain's own stages have anything to do, as far as the look at the start tells."""
    stages = (*_STAGES, "train") if arrival.role == "learn" else _STAGES
    is_clean = all(progress.is_clean(f"{stage}@{arrival.domain}") for stage in stages)
    return not (is_clean and _is_received(progress, arrival))


def learn(progress: Progressing, domain: str) -> bool:
    """Train the module of a domain, one training a GPU at a time, and write its MLflow run; True when it changed."""
    target = f"train@{domain}"
    with nullcontext() if progress.is_clean(target) else held("gpu"):
        changed = progress.run(target) != "skipped"
    curve = json.loads(progress.workspace.places.curve(domain).read_text(encoding="utf-8"))
    track_training(progress.workspace.root, domain, curve["module"])
    return changed
