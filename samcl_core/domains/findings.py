"""What checks find in a data set: which check, how bad, in which files, what exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from samcl_core.errors import DataError

__all__ = ["SEVERITIES", "Finding", "Severity", "findings_from_json", "findings_to_json", "printable", "sort_findings"]

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""From the worst to the mildest. ``error``: cannot be used as it is. ``warning``: is used, and should be looked at.
``info``: worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: machine name of the check, ``mask.empty``.
        severity: ``error``, ``warning`` or ``info``.
        files: where, as paths relative to the raw folder; empty for the domain as a whole.
        message: the value found and the one expected.
    """

    check: str
    severity: Severity
    files: tuple[str, ...]
    message: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "files": list(self.files)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """The finding that ``as_json`` gave.

        Raises:
            DataError: the value is something else.
        """
        files = value.get("files")
        texts = (value.get("check"), value.get("message"), *(files if isinstance(files, list) else (None,)))
        severity = value.get("severity")
        if severity not in SEVERITIES or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{dict(value)!r} is no finding: expected check, message, files and one of {SEVERITIES}",
                hint="ingest the domain again",
            )
        return cls(str(texts[0]), cast(Severity, severity), tuple(map(str, texts[2:])), str(texts[1]))


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, the worst first, then by check, files and message: the same findings in the same order."""
    return sorted(
        set(findings), key=lambda found: (SEVERITIES.index(found.severity), found.check, found.files, found.message)
    )


def findings_to_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Sorted findings as plain values."""
    return [found.as_json() for found in sort_findings(findings)]


def findings_from_json(values: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What ``findings_to_json`` gave, sorted.

    Raises:
        DataError: one of the values is no finding.
    """
    return sort_findings(Finding.from_json(value) for value in values)


def printable(text: str) -> str:
    """A file name or message for people: what would not be seen, or would move the rest of the line, is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
