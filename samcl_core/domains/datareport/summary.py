"""A data set in numbers: samples, images, classes, sizes and shares of foreground of each split."""

from __future__ import annotations

import bisect
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samcl_core.domains.findings import SEVERITIES, Finding, sort_findings
from samcl_core.domains.layout import SPLITS
from samcl_core.domains.manifest import OK, Record
from samcl_core.errors import DataError

__all__ = ["FOREGROUND_BINS", "CheckCount", "DataSummary", "SplitSummary", "summarize"]

_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7)

FOREGROUND_BINS = ("none", "< 0.1 %", "< 0.3 %", "< 1 %", "< 3 %", "< 10 %", "< 30 %", "< 50 %", "< 70 %", ">= 70 %")
"""Names of the bins of ``SplitSummary.foreground``: shares of the image, each without what the bins before it hold."""


@dataclass(frozen=True)
class SplitSummary:
    """One split.

    Attributes:
        num_samples: rows of the manifest that can be used.
        num_images: image files they come from.
        classes: samples of each class, the largest first; empty where the source has none.
        width: smallest, median and largest width of the images in pixels.
        height: the same of the heights.
        foreground: samples in each of ``FOREGROUND_BINS``.
        median_foreground_frac: median share of the image that is foreground.
    """

    num_samples: int
    num_images: int
    classes: dict[str, int]
    width: tuple[int, int, int]
    height: tuple[int, int, int]
    foreground: tuple[int, ...]
    median_foreground_frac: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SplitSummary:
        """The numbers from the values of ``dataclasses.asdict``; raises KeyError, TypeError or ValueError otherwise."""
        least_w, middle_w, most_w = value["width"]
        least_h, middle_h, most_h = value["height"]
        return cls(
            num_samples=int(value["num_samples"]),
            num_images=int(value["num_images"]),
            classes={str(label): int(count) for label, count in value["classes"].items()},
            width=(int(least_w), int(middle_w), int(most_w)),
            height=(int(least_h), int(middle_h), int(most_h)),
            foreground=tuple(int(count) for count in value["foreground"]),
            median_foreground_frac=float(value["median_foreground_frac"]),
        )


@dataclass(frozen=True)
class CheckCount:
    """How often a check found something."""

    check: str
    severity: str
    num_findings: int


@dataclass(frozen=True)
class DataSummary:
    """A domain.

    Attributes:
        domain: its name.
        format: name of the layout it arrived in.
        splits: split name to its numbers; splits without samples are left out.
        num_quarantined: samples that cannot be used.
        checks: every check that found something, the worst first.
    """

    domain: str
    format: str
    splits: dict[str, SplitSummary]
    num_quarantined: int
    checks: tuple[CheckCount, ...]

    @property
    def num_findings(self) -> dict[str, int]:
        """Severity to number of findings; every severity is there."""
        return {
            severity: sum(count.num_findings for count in self.checks if count.severity == severity)
            for severity in SEVERITIES
        }

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "num_findings": self.num_findings}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataSummary:
        """The summary that ``as_json`` gave.

        Raises:
            DataError: the value is something else.
        """
        try:
            splits = {str(name): SplitSummary.from_json(split) for name, split in value["splits"].items()}
            checks = tuple(CheckCount(**count) for count in value["checks"])
            return cls(value["domain"], value["format"], splits, value["num_quarantined"], checks)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise DataError(f"not the summary of a data report: {exc}", hint="ingest the domain again") from exc


def summarize(records: Iterable[Record], findings: Sequence[Finding], *, domain: str, format: str) -> DataSummary:
    """The numbers of a domain from the rows of its manifest and what the checks found; their order does not matter."""
    rows = list(records)
    good = [row for row in rows if row.status == OK]
    splits = {split: _split([row for row in good if row.split == split]) for split in SPLITS}
    counts = Counter((found.check, found.severity) for found in findings)
    order = dict.fromkeys((found.check, found.severity) for found in sort_findings(findings))
    return DataSummary(
        domain=domain,
        format=format,
        splits={name: split for name, split in splits.items() if split.num_samples},
        num_quarantined=len(rows) - len(good),
        checks=tuple(CheckCount(check, severity, counts[check, severity]) for check, severity in order),
    )


def _split(rows: Sequence[Record]) -> SplitSummary:
    sizes = {row.source_image or row.image: (row.width, row.height) for row in rows}
    classes = Counter(row.label for row in rows if row.label)
    bins = Counter(bisect.bisect_right(_EDGES, row.foreground_frac) if row.foreground_frac else 0 for row in rows)
    return SplitSummary(
        num_samples=len(rows),
        num_images=len(sizes),
        classes=dict(sorted(classes.items(), key=lambda entry: (-entry[1], entry[0]))),
        width=_range([width for width, _ in sizes.values()]),
        height=_range([height for _, height in sizes.values()]),
        foreground=tuple(bins[number] for number in range(len(FOREGROUND_BINS))),
        median_foreground_frac=statistics.median(row.foreground_frac for row in rows) if rows else 0.0,
    )


def _range(values: Sequence[int]) -> tuple[int, int, int]:
    return (min(values), statistics.median_low(values), max(values)) if values else (0, 0, 0)
