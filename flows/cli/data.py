"""``samcl data``: what is in an ingested domain: its report, and pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.output import Settings, StepProgress, emit_json, say, show_table

if TYPE_CHECKING:
    from samcl_core.domains.datareport import DataSummary
    from samcl_core.domains.findings import Finding

__all__ = ["app"]

app = typer.Typer(help="Ingested domains: report, view.", no_args_is_help=True, rich_markup_mode=None)

DomainArgument = Annotated[str, typer.Argument(help="An ingested domain.")]
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@app.command()
def report(
    context: typer.Context,
    domain: DomainArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """What was found when the data last arrived: numbers, errors, warnings, and where the page with pictures is."""
    from samcl_core.domains.datareport import REPORT_HTML, read_report

    folder, is_ingested = _report_folder(context.obj, domain)
    summary, findings = read_report(folder)
    path = folder / REPORT_HTML
    if as_json:
        found = [one.as_json() for one in findings]
        emit_json({"page": str(path), "is_ingested": is_ingested, "summary": summary.as_json(), "findings": found})
        return
    state = "" if is_ingested else "NOT INGESTED, too much of it is bad; "
    say(f"{summary.domain}: {state}format {summary.format}, {summary.num_quarantined} sample(s) put aside")
    _show_splits(summary)
    _show_findings(summary, findings)
    say(f"pictures and all findings: {path}")


@app.command()
def view(
    context: typer.Context,
    domain: DomainArgument,
    count: Annotated[int, typer.Option("--n", min=1, max=1000, help="How many samples.")] = 16,
    split: Annotated[str | None, typer.Option(help="train, val or test. Default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other samples.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: DOMAIN.png here.")] = None,
) -> None:
    """Write a contact sheet of samples with their masks, boxes and points drawn."""
    from samcl_core.domains.contact_sheet import contact_sheet, pick_samples
    from samcl_core.domains.layout import SPLITS, Domain
    from samcl_core.drawing import write_picture
    from samcl_core.errors import DataError, UsageError

    path = out or Path(f"{domain}.png")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--out {path}: expected a name that ends in one of {', '.join(_SUFFIXES)}")
    if split is not None and split not in SPLITS:
        raise UsageError(f"--split {split!r}, expected one of {', '.join(SPLITS)}")
    data = Domain(_domain_folder(context.obj, domain))
    samples = [sample for name in ([split] if split else SPLITS) for sample in data.samples(name)]
    if not samples:
        raise DataError(f"{domain} has no samples in {split or 'any split'}", hint=f"samcl data report {domain}")
    chosen = pick_samples(samples, count, seed)
    title = f"{domain}: {len(chosen)} of {len(samples)} samples{f' for {split}' if split else ''}"
    with StepProgress(f"view {domain}") as progress:
        sheet = contact_sheet(chosen, title=title, progress=progress)
    write_picture(path, sheet)
    say(f"{title}: {path}")


def _report_folder(settings: Settings, domain: str) -> tuple[Path, bool]:
    """Where the newest report of a domain is, and whether that data was ingested: it may have been refused.

    Raises:
        UsageError: there is nothing of this name.
    """
    from samcl_core.domains.datareport import REPORT_JSON
    from samcl_core.stages.places import Places

    refused = Places(settings.root()).failed_report("-").parent
    names = [path.parent.name for path in refused.glob(f"*/{REPORT_JSON}")]
    if domain not in names:
        return _domain_folder(settings, domain) / "report", True
    done, failed = settings.root() / "data" / domain / "report", refused / domain
    is_ingested = _modified(done / REPORT_JSON) > _modified(failed / REPORT_JSON)
    return (done, True) if is_ingested else (failed, False)


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _domain_folder(settings: Settings, domain: str) -> Path:
    """Where an ingested domain is.

    Raises:
        UsageError: there is none of this name.
    """
    from samcl_core.errors import UsageError

    data = settings.root() / "data"
    names = sorted(path.parent.name for path in data.glob("*/manifest.parquet"))
    if domain not in names:
        found = f"ingested are {', '.join(names)}" if names else "none is ingested yet"
        raise UsageError(f"no ingested domain is called {domain!r}; {found}", hint="samcl ingest PATH")
    return data / domain


def _show_splits(summary: DataSummary) -> None:
    rows = [
        [
            name,
            f"{split.num_samples:,}",
            f"{split.num_images:,}",
            "x".join(str(sides[1]) for sides in (split.width, split.height)),
            f"{split.median_foreground_frac:.2%}",
            ", ".join(f"{label} {count:,}" for label, count in list(split.classes.items())[:5]) or "-",
        ]
        for name, split in summary.splits.items()
    ]
    show_table(["split", "samples", "images", "median size", "median foreground", "classes"], rows)


def _show_findings(summary: DataSummary, findings: Sequence[Finding]) -> None:
    from samcl_core.domains.findings import printable

    if not findings:
        say("nothing was found wrong")
        return
    first = {found.check: found for found in reversed(findings)}
    rows = []
    for count in summary.checks:
        example = first[count.check]
        where = printable(example.files[0]) if example.files else "the whole domain"
        rows.append([count.severity, count.check, f"{count.num_findings:,}", where, printable(example.message)])
    show_table(["severity", "check", "findings", "first in", "what"], rows)
