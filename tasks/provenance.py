"""From a registered bank to everything that made it, and from a domain's data to the banks that contain it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from samcl_core.errors import UsageError
from tasks.dvc import raw_digests
from tasks.ledger import read_ledger
from tasks.registry import BankVersion, aliases, all_versions, model_name, read_version
from tasks.tracking import open_tracker

__all__ = ["banks_of", "provenance"]

_DECISION = ("decision", "decided_by", "decided_at", "decided_against", "reason", "rolled_back")
_GATE = "samcl.gate."
_KINDS = {"data": "training_data", "raw_data": "raw_data", "test_data": "test_data"}


def provenance(root: Path, version: str) -> dict[str, Any]:
    """Everything that made a registered bank, as JSON values: git, DVC, settings, backbone, runs, decision, reigns.

    Args:
        root: the workspace.
        version: a number, or an alias such as ``@champion``.

    Raises:
        UsageError: there is no such version or alias.
        RegistryUnavailable: MLflow cannot be reached.
    """
    with open_tracker(root) as tracker:
        found, named = read_version(tracker, version), aliases(tracker)
    tags = found.tags
    plain = ("backbone", "backbone_sha256", "git_commit", "dvc_lock_sha256", "params_sha256", "code_sha256")
    return {
        "model": model_name(),
        "version": found.version,
        "aliases": _aliases(named, found.version),
        "registered": _time(found.created_ms),
        "bank": found.digest,
        "domains": list(found.domains),
        **{name: tags.get(name) for name in plain},
        "is_reproducible": tags.get("git_dirty") == "false",
        "data": {name: _data(tags, name) for name in _names(tags)},
        "samcl_version": tags.get("samcl_version"),
        "mlflow_run": found.run_id or None,
        "flow_run": _some(tags.get("flow_run_id")),
        "decision": _decision(tags),
        "champion": [reign for reign in read_ledger(root).reigns(model_name()) if reign["version"] == found.version],
    }


def banks_of(root: Path, domain: str) -> list[dict[str, Any]]:
    """Every version of a domain's data that a registered bank knows, oldest first, with these banks.

    A learnt domain's data version is its training data; of a natural or unseen one, the test data. ``is_present`` tells
    the data in the workspace; ``holds_module`` tells banks that learnt it from those that were only scored on it.

    Raises:
        UsageError: no registered bank knows the domain.
        RegistryUnavailable: MLflow cannot be reached.
    """
    with open_tracker(root) as tracker:
        versions, named = all_versions(tracker), aliases(tracker)
    grouped: dict[tuple[str | None, ...], list[BankVersion]] = {}
    for version in versions:
        if domain in _names(version.tags):
            grouped.setdefault(tuple(_data(version.tags, domain).values()), []).append(version)
    if not grouped:
        known = sorted({name for version in versions for name in _names(version.tags)})
        raise UsageError(f"no registered bank knows domain {domain!r}, known are {known}", hint="samcl bank history")
    present = raw_digests(root).get(domain)
    return [
        {
            **dict(zip(_KINDS.values(), digests, strict=True)),
            "is_present": digests[1] is not None and digests[1] == present,
            "holds_module": digests[0] is not None,
            "banks": [_bank(version, named) for version in members],
        }
        for digests, members in grouped.items()
    ]


def _bank(version: BankVersion, named: dict[str, str]) -> dict[str, Any]:
    return {
        "version": version.version,
        "aliases": _aliases(named, version.version),
        "bank": version.digest,
        "registered": _time(version.created_ms),
        "domains": list(version.domains),
    }


def _names(tags: dict[str, str]) -> list[str]:
    """Domains that the tags say anything about, learnt ones first and in their order."""
    learnt = [name for name in tags.get("domains", "").split(",") if name]
    parts = [key.partition(".") for key in tags]
    return list(dict.fromkeys([*learnt, *sorted(name for kind, dot, name in parts if dot and kind in _KINDS)]))


def _data(tags: dict[str, str], domain: str) -> dict[str, str | None]:
    return {name: tags.get(f"{kind}.{domain}") for kind, name in _KINDS.items()}


def _decision(tags: dict[str, str]) -> dict[str, Any] | None:
    told = {name: tags[f"samcl.{name}"] for name in _DECISION if f"samcl.{name}" in tags}
    gates = {key.removeprefix(_GATE): text for key, text in sorted(tags.items()) if key.startswith(_GATE)}
    return {**told, "gates": gates} if told else None


def _aliases(named: dict[str, str], version: str) -> list[str]:
    return sorted(alias for alias, number in named.items() if number == version)


def _time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _some(text: str | None) -> str | None:
    return None if text in (None, "none") else text
