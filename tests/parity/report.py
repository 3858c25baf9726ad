"""Writes ``docs/parity.md``: runs every test that compares with recorded numbers and keeps what it compared.

From the root of the repository::

    python tests/parity/report.py

The full-size networks take some minutes on two cores. Nothing is compared here: the tests do that, this file lays out.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parity.md"
SECTIONS = {
    "Inputs": ("heat-map", "preprocessing", "point sampling", "ingested"),
    "Networks without a module": ("selector embedding", "prefix", "without a module", "high-resolution"),
    "AugModule": ("AugModule",),
    "Training": ("losses", "loss gradients", "one step", "new module", "training", "learning rate"),
    "Selector": ("selector", "released selector"),
    "Published files: imported, then predicted": ("imported bank", "released files"),
    "Scores": ("metrics", "forgetting"),
    "Lower precision": ("bfloat16", "float16 modules", "int8 modules"),
}
"""Headings, and the first words of the quantities below them; the longest match counts."""

INTRO = """# Parity with the published code

<!-- Written by tests/parity/report.py. Do not edit. -->

Numbers of the `reference` profile against those recorded from the published SAMCL code
([tests/golden](../tests/golden/README.md) says from where), with weights that anybody can rebuild from
`tests/recipe.py`. Each row gathers all comparisons of one quantity: the pair of numbers that comes closest to its
tolerance, the largest difference of all, and how many numbers were compared. A tolerance `a + r x` allows an absolute
difference of `a` plus `r` times the recorded number.

This page was written by `python tests/parity/report.py` on {machine}, with torch {torch}, in float32.
{verdict}
"""
NOTES = """
## How to read it

- "Full pass" runs the official encoder in one go with the module inside; "split pass" is what the pipeline does: the
  frozen prefix once, then the adapted suffix.
- "One step" is one training step from the recipe's module; "new module" one whose last layers are zero, as training
  starts.
- Masks are compared pixel by pixel; our number and the recorded one are then counts of foreground pixels.
- Rows under "released" and "ingested" need the published files, which are not part of this repository; without them
  these tests are skipped, with a message that says what is missing.

## Not measured
{missing}
"""

HEADER = """| quantity | network | ours | recorded | largest difference | tolerance | numbers |
| --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Row:
    """All comparisons of one quantity on one network."""

    quantity: str
    network: str
    closest: dict[str, Any] = field(default_factory=dict)
    difference: float = 0.0
    count: int = 0
    is_within: bool = True

    def add(self, entry: dict[str, Any]) -> None:
        if not self.closest or _share_of_limit(entry) > _share_of_limit(self.closest):
            self.closest = entry
        self.difference = max(self.difference, entry["difference"])
        self.count += int(entry["count"])
        self.is_within = self.is_within and entry["is_within"]


@dataclass(eq=False)
class Ledger:
    """A pytest plugin: only tests that compare with recorded numbers, and what they compared."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "parity" in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.nodeid.split("::")[-1]] = str(report.longrepr[2]).removeprefix("Skipped: ")
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call":
            for name, entry in report.user_properties:
                if name == "parity":
                    key = entry["quantity"], entry["network"]
                    self.rows.setdefault(key, Row(*key)).add(entry)


def _share_of_limit(entry: dict[str, Any]) -> float:
    if "share" in entry:
        return float(entry["difference"] / entry["share"]) if entry["share"] else float(entry["difference"] > 0)
    return float(entry["used"])


def section_of(quantity: str) -> str:
    """The heading of a quantity.

    Raises:
        KeyError: it begins like none.
    """
    starts = [(start, title) for title, starts in SECTIONS.items() for start in starts]
    fitting = [(len(start), title) for start, title in starts if quantity.startswith(start)]
    if not fitting:
        raise KeyError(f"{quantity!r} has no heading in tests/parity/report.py")
    return max(fitting)[1]


def _limit(entry: dict[str, Any]) -> str:
    if "share" in entry:
        return f"{entry['share']:.2%} of pixels" if entry["share"] else "equal"
    parts = [f"{entry['atol']:.0e}"] if entry["atol"] else []
    parts += [f"{entry['rtol']:.0e} x"] if entry["rtol"] else []
    return " + ".join(parts) or "equal"


def _line(row: Row) -> str:
    entry, is_share = row.closest, "share" in row.closest
    numbers = [f"{entry[name]:.0f}" if is_share else f"{entry[name]:.7g}" for name in ("ours", "recorded")]
    difference = f"{row.difference:.3%} of pixels" if is_share else f"{row.difference:.2g}"
    mark = "" if row.is_within else " **exceeded**"
    cells = [row.quantity, row.network, *numbers, difference, _limit(entry) + mark, f"{row.count:,}"]
    return "| " + " | ".join(cells) + " |"


def page(rows: Iterable[Row], skipped: dict[str, str], failed: list[str], machine: str, torch: str) -> str:
    """The whole page."""
    by_section: dict[str, list[Row]] = {title: [] for title in SECTIONS}
    for row in rows:
        by_section[section_of(row.quantity)].append(row)
    outside = sum(not row.is_within for found in by_section.values() for row in found)
    total = sum(len(found) for found in by_section.values())
    verdict = f"All {total} quantities are within their tolerance."
    if outside or failed:
        verdict = f"**{outside} of {total} quantities exceed their tolerance; failed tests: {len(failed)}.**"
    text = INTRO.format(machine=machine, torch=torch, verdict=verdict)
    for title, found in by_section.items():
        if found:
            text += f"\n## {title}\n\n{HEADER}"
            text += "\n".join(_line(row) for row in sorted(found, key=lambda row: (row.quantity, row.network))) + "\n"
    missing = "".join(f"\n- `{name}`: {_reason(reason)}" for name, reason in sorted(skipped.items()))
    return text + NOTES.format(missing=missing or "\nNothing: every comparison ran.").rstrip() + "\n"


def _reason(text: str) -> str:
    """Why a test was skipped; where files were looked for is no one else's business."""
    return "not measured, needs the published files" if "SAMCL_SHARED" in text else f"not measured, {text}"


def _machine() -> str:
    import torch

    kind = platform.machine().replace("_", "-")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f" and {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"a {cores}-core {kind} CPU{gpu}"


def main() -> int:
    """Run the comparisons and write the page; not zero when a number is not within its tolerance."""
    parser = argparse.ArgumentParser(description="Write docs/parity.md from the comparisons with recorded numbers.")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (default: docs/parity.md)")
    parser.add_argument("--select", default="", help="only tests that fit this pytest -k expression")
    arguments = parser.parse_args()
    ledger = Ledger()
    import torch

    chosen = ["-k", arguments.select] if arguments.select else []
    code = pytest.main([str(ROOT / "tests"), "-m", "", "--timeout", "1800", *chosen], plugins=[ledger])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    text = page(ledger.rows.values(), ledger.skipped, ledger.failed, _machine(), torch.__version__.split("+")[0])
    arguments.out.write_text(text, encoding="utf-8")
    return 1 if ledger.failed else 0


if __name__ == "__main__":
    sys.exit(main())
