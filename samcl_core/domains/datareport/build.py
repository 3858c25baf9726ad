"""``report.json`` and ``report.html`` of a domain: the same findings give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from samcl_core.domains.datareport.page import page
from samcl_core.domains.datareport.pictures import Picture
from samcl_core.domains.datareport.summary import DataSummary
from samcl_core.domains.findings import Finding, findings_from_json, findings_to_json, sort_findings
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import write_atomic

__all__ = ["REPORT_HTML", "REPORT_JSON", "read_report", "write_report"]

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
_VERSION = 1


def write_report(
    folder: Path, summary: DataSummary, findings: Sequence[Finding], pictures: Sequence[Picture] = ()
) -> None:
    """Write ``report.html``, which needs no other file and no network, and ``report.json``, which holds everything.

    Args:
        folder: made if it is not there.
        summary: the numbers of the domain.
        findings: what the checks found, in any order.
        pictures: what the page shows of them.

    Raises:
        SamclError: the folder cannot be written.
    """
    content = {"version": _VERSION, "summary": summary.as_json(), "findings": findings_to_json(findings)}
    write_atomic(folder / REPORT_HTML, page(summary, sort_findings(findings), pictures).encode("utf-8"))
    # Escaped, since names of files on Linux may hold bytes that are no text.
    write_atomic(folder / REPORT_JSON, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii"))


def read_report(folder: Path) -> tuple[DataSummary, list[Finding]]:
    """What ``write_report`` wrote.

    Raises:
        LayoutError: there is no report.
        DataError: it cannot be read.
    """
    path = folder / REPORT_JSON
    domain = folder.parent.name
    if not path.is_file():
        raise LayoutError(f"{path} is missing", hint=f"dvc checkout, or dvc repro ingest@{domain}")
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content["version"] != _VERSION:
            raise DataError(
                f"{path}: version {content['version']!r}, expected {_VERSION}", hint=f"dvc repro ingest@{domain}"
            )
        return DataSummary.from_json(content["summary"]), findings_from_json(content["findings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}", hint=f"dvc repro ingest@{domain}") from exc
