"""Which registered bank is champion: decided by gates, by a person, or taken back. Moves an alias only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samcl_core.config import Params
from samcl_core.errors import SamclError, UsageError
from samcl_core.evaluation.gates import Gate
from tasks.gates import gates_of
from tasks.ledger import Entry, Ledger, append_entry, now_utc, read_ledger
from tasks.registry import CANDIDATE, CHAMPION, BankVersion, aliases, model_name, read_version
from tasks.tracking import RegistryUnavailable, Tracker, open_tracker
from tasks.workspace import Workspace

__all__ = ["Decision", "decide", "refuse_unreachable", "rollback"]

_TAG_CHARS = 4000
_GATE_TAG = "samcl.gate."


@dataclass(frozen=True)
class Decision:
    """What was decided about a version.

    Attributes:
        model: registered model.
        version: the version in question.
        bank: content digest of its bank.
        promoted: it is champion now.
        forced: it is champion although a gate failed.
        is_new: False when it was champion already, then nothing was judged or written.
        champion: the version that it was judged against and that was champion before; ``None`` without one.
        gates: all gates, with reasons.
        actor: ``user@host`` or ``flow run <id>``.
        reason: in one sentence.
        time: UTC.
    """

    model: str
    version: str
    bank: str
    promoted: bool
    forced: bool
    is_new: bool
    champion: str | None
    gates: tuple[Gate, ...]
    actor: str
    reason: str
    time: str

    @property
    def word(self) -> str:
        """``promoted``, ``forced`` or ``refused``."""
        return "forced" if self.forced else "promoted" if self.promoted else "refused"

    def values(self) -> dict[str, Any]:
        """The same as JSON values, with ``markdown``."""
        gates = [gate.values() for gate in self.gates]
        return {**vars(self), "gates": gates, "decision": self.word, "markdown": self.markdown()}

    def tags(self) -> dict[str, str]:
        """The same as tags of the version."""
        tags = {
            "samcl.decision": self.word,
            "samcl.decided_by": self.actor,
            "samcl.decided_at": self.time,
            "samcl.decided_against": self.champion or "plain SAM",
            "samcl.reason": self.reason,
        }
        return _clipped(tags | {_GATE_TAG + gate.name: str(gate) for gate in self.gates})

    def markdown(self) -> str:
        """The same as a page for people."""
        state = {"promoted": "promoted to champion", "forced": "promoted by force", "refused": "not promoted"}
        facts = {
            "bank": f"`{self.bank}`",
            "compared with": f"version {self.champion}, the champion"
            if self.champion
            else "plain SAM: no champion yet",
            "decided by": self.actor,
            "at": self.time,
            "reason": self.reason,
        }
        head = "\n".join(f"| {name} | {_cell(text)} |" for name, text in facts.items())
        rows = "\n".join(
            f"| {gate.name} | {'passed' if gate.passed else '**failed**'} | {_number(gate.found)} |"
            f" {_cell(gate.expected)} | {_cell(gate.reason)} |"
            for gate in self.gates
        )
        title = f"# {self.model} version {self.version}: {state[self.word]}"
        table = f"| gate | | found | expected | reason |\n| --- | --- | --- | --- | --- |\n{rows}"
        return f"{title}\n\n| | |\n| --- | --- |\n{head}\n\n{table}\n"


def decide(
    root: Path,
    params: Params,
    version: str = f"@{CANDIDATE}",
    *,
    actor: str,
    is_automatic: bool = False,
    force: bool = False,
    reason: str = "",
) -> Decision:
    """Judge a version, make it champion when every gate passed, and write down what was decided and why.

    One decision at a time in a workspace. Tags and page are written first, then the alias moves, then the ledger gets
    its line; after a crash in between, the next decision finds the moved alias and says so in the ledger.

    Args:
        root: the workspace.
        params: its settings.
        version: a number or an alias.
        actor: who decides.
        is_automatic: a flow decides. Then a version that a person rolled back from stays where it is.
        force: promote although gates fail; needs ``reason``.
        reason: a person's words.

    Raises:
        UsageError: there is no such version, or ``force`` has no reason.
        RegistryUnavailable: MLflow cannot be reached; the champion is as it was, or moved as a whole.
        SamclError: the champion changed under the decision.
    """
    if force and not reason.strip():
        raise UsageError("a promotion by force needs a reason, which is written down", hint="--force --reason TEXT")
    with Workspace(root).lock("promotion"):
        with open_tracker(root) as tracker:
            candidate, champion = read_version(tracker, version), _champion(tracker)
        ledger = _reconciled(root, champion, actor)
        if champion is not None and champion.version == candidate.version:
            return _already(candidate, ledger, actor)
        gates = (*gates_of(root, params, candidate, champion), *_of_ledger(ledger, candidate, is_automatic))
        decision = _decision(candidate, champion, gates, actor, force=force, reason=reason.strip())
        _carry_out(root, decision, candidate)
        return decision


def refuse_unreachable(root: Path, *, version: str, bank: str, actor: str, error: RegistryUnavailable) -> Decision:
    """The decision where the registry does not answer: not promoted. It is only in the ledger; ask again later."""
    hint = "samcl promote, as soon as it answers"
    gate = Gate("registry", False, None, "reachable", f"{error.message}; next: {hint}")
    reason = "not promoted: the registry cannot be reached"
    decision = Decision(model_name(), version, bank, False, False, True, None, (gate,), actor, reason, now_utc())
    _write_line(root, decision, None)
    return decision


def rollback(root: Path, *, reason: str, actor: str, to: str | None = None) -> Entry:
    """Make an earlier champion champion again: the one before, or ``to``. No file is touched but the ledger.

    Raises:
        UsageError: no reason, no champion before, or ``to`` was never champion.
        RegistryUnavailable: MLflow cannot be reached.
    """
    if not reason.strip():
        raise UsageError("a rollback needs a reason, which is written down", hint="samcl rollback --reason TEXT")
    with Workspace(root).lock("promotion"):
        with open_tracker(root) as tracker:
            champion = _champion(tracker)
        ledger = _reconciled(root, champion, actor)
        if champion is None:
            raise UsageError("there is no champion to roll back from", hint="samcl promote VERSION")
        with open_tracker(root) as tracker:
            target = read_version(tracker, to or _before(ledger))
            _check_target(ledger, target, champion)
            at = now_utc()
            told = {"samcl.decision": "rolled back to", "samcl.decided_by": actor, "samcl.decided_at": at}
            _set_tags(tracker, target.version, {**told, "samcl.reason": reason.strip()})
            left = f"{at} by {actor}, to version {target.version}: {reason.strip()}"
            _set_tags(tracker, champion.version, {"samcl.rolled_back": left})
            _move_alias(tracker, target.version, champion.version)
        return append_entry(
            root,
            actor=actor,
            action="rollback",
            model=model_name(),
            version=target.version,
            bank=target.digest,
            before={"version": champion.version, "bank": champion.digest},
            reason=reason.strip(),
        )


def _champion(tracker: Tracker) -> BankVersion | None:
    return read_version(tracker, f"@{CHAMPION}") if CHAMPION in aliases(tracker) else None


def _reconciled(root: Path, champion: BankVersion | None, actor: str) -> Ledger:
    """The ledger, after a champion that it does not know of (moved by hand, or before a crash) was written into it."""
    ledger = read_ledger(root)
    known = ledger.champion(model_name())
    recorded = None if known is None else (known.version, known.bank)
    if recorded == (None if champion is None else (champion.version, champion.digest)):
        return ledger
    was = "no champion" if known is None else f"version {known.version}"
    reason = f"the ledger knew {was}; the alias was moved by something else, or its line was lost in a crash"
    if champion is not None and "samcl.decided_by" in champion.tags:
        decided = {
            key: champion.tags.get(f"samcl.{key}", "") for key in ("decision", "decided_by", "decided_at", "reason")
        }
        reason += "; the version's tags say: {decision} by {decided_by} at {decided_at}: {reason}".format(**decided)
    append_entry(
        root,
        actor=actor,
        action="observe",
        model=model_name(),
        version=None if champion is None else champion.version,
        bank=None if champion is None else champion.digest,
        before=None if known is None else {"version": str(known.version), "bank": str(known.bank)},
        reason=reason,
    )
    return read_ledger(root)


def _already(candidate: BankVersion, ledger: Ledger, actor: str) -> Decision:
    made = ledger.champion(model_name())
    since = "" if made is None else f" since {made.time}"
    reason = f"version {candidate.version} is champion already{since}"
    before = None if made is None or made.before is None else made.before["version"]
    return Decision(
        model_name(), candidate.version, candidate.digest, True, False, False, before, (), actor, reason, now_utc()
    )


def _of_ledger(ledger: Ledger, candidate: BankVersion, is_automatic: bool) -> tuple[Gate, ...]:
    """Gates that exist only when they fail."""
    found = []
    if ledger.problems:
        reason = f"{ledger.problems[0]} ({len(ledger.problems)} problem(s)); next: samcl bank history"
        found.append(Gate("ledger", False, None, "every line follows from the one before", reason))
    back = ledger.rollback_of(model_name(), candidate.digest) if is_automatic else None
    if back is not None:
        reason = f"rolled back at {back.time} by {back.actor}: {back.reason}; next: samcl promote {candidate.version}"
        found.append(Gate("rolled_back", False, None, "never rolled back, or promoted by a person since", reason))
    return tuple(found)


def _decision(
    candidate: BankVersion,
    champion: BankVersion | None,
    gates: tuple[Gate, ...],
    actor: str,
    *,
    force: bool,
    reason: str,
) -> Decision:
    failed = [gate.name for gate in gates if not gate.passed]
    outcome = f"failed: {', '.join(failed)}" if failed else "every gate passed"
    text = f"{reason} ({outcome})" if reason else outcome
    return Decision(
        model=model_name(),
        version=candidate.version,
        bank=candidate.digest,
        promoted=force or not failed,
        forced=force and bool(failed),
        is_new=True,
        champion=None if champion is None else champion.version,
        gates=gates,
        actor=actor,
        reason=text,
        time=now_utc(),
    )


def _carry_out(root: Path, decision: Decision, candidate: BankVersion) -> None:
    with open_tracker(root) as tracker:
        champion = _champion(tracker)
        tags = decision.tags()
        for key in candidate.tags:
            if key.startswith(_GATE_TAG) and key not in tags:
                tracker.client.delete_model_version_tag(model_name(), candidate.version, key)
        _set_tags(tracker, candidate.version, tags)
        if candidate.run_id:
            page = f"promotion/version-{candidate.version}.md"
            tracker.client.log_text(candidate.run_id, decision.markdown(), page)
        if decision.promoted:
            _move_alias(tracker, candidate.version, decision.champion)
    _write_line(root, decision, champion)


def _write_line(root: Path, decision: Decision, champion: BankVersion | None) -> None:
    append_entry(
        root,
        actor=decision.actor,
        action="promote" if decision.promoted else "refuse",
        model=decision.model,
        version=decision.version,
        bank=decision.bank,
        before=None if champion is None else {"version": champion.version, "bank": champion.digest},
        reason=decision.reason,
        forced=decision.forced,
        gates=[gate.values() for gate in decision.gates],
    )


def _set_tags(tracker: Tracker, version: str, tags: dict[str, str]) -> None:
    for key, value in _clipped(tags).items():
        tracker.client.set_model_version_tag(model_name(), version, key, value)


def _move_alias(tracker: Tracker, version: str, expected: str | None) -> None:
    """``champion`` points to ``version``, unless somebody else moved it since it was looked at."""
    found = aliases(tracker).get(CHAMPION)
    if found != expected:
        raise SamclError(
            f"the champion changed from version {expected} to {found} while version {version} was judged",
            hint="the same command again",
        )
    tracker.client.set_registered_model_alias(model_name(), CHAMPION, version)


def _before(ledger: Ledger) -> str:
    if ledger.problems:
        raise UsageError(
            f"{ledger.problems[0]}: the champion before cannot be trusted",
            hint="samcl rollback --to VERSION --reason TEXT",
        )
    line = ledger.predecessors(model_name())
    if not line:
        raise UsageError("there was no champion before this one", hint="samcl bank history; samcl promote VERSION")
    return str(line[-1].version)


def _check_target(ledger: Ledger, target: BankVersion, champion: BankVersion) -> None:
    if target.version == champion.version:
        raise UsageError(f"version {target.version} is champion", hint="samcl bank history")
    if (target.version, target.digest) not in {(entry.version, entry.bank) for entry in ledger.moves(model_name())}:
        raise UsageError(
            f"version {target.version} was never champion, so there is nothing to go back to",
            hint=f"samcl promote {target.version}",
        )


def _clipped(tags: dict[str, str]) -> dict[str, str]:
    return {key: value if len(value) <= _TAG_CHARS else value[: _TAG_CHARS - 1] + "…" for key, value in tags.items()}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
