"""``samcl ingest``, ``arrive`` and ``stream``: data come in and are learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from flows.cli.board import Board
from flows.cli.output import Settings, emit_json, note, say
from flows.cli.running import JsonOption, KeepOption, answer, run_flow

if TYPE_CHECKING:
    from flows.cli.sources import Source
    from samcl_core.config import Params
    from samcl_core.domains.findings import Finding
    from samcl_core.stages.ingest import Survey

__all__ = ["arrive", "ingest", "stream"]

RoleOption = Annotated[
    str | None,
    typer.Option(help="learn, natural (what the plain model must keep) or unseen (evaluated only). Default: learn."),
]
FormatOption = Annotated[str, typer.Option(help="Layout of the source: auto, or a name (docs/formats.md).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="What the files do not say: instances=each, classes=a,b, min_area_px=64, max_samples=500, negatives=keep,"
        " test=0.2, val=0.1, group=REGEX ... (docs/formats.md). May be repeated.",
    ),
]
LabelOption = Annotated[str | None, typer.Option(help="A text for people, kept in params.yaml.")]
SPLITS = ("train", "val", "test")
UNPACKED = Path(".samcl", "unpacked")
"""Where archives are unpacked while they are taken in."""

NameOption = Annotated[str | None, typer.Option("--domain", help="The domain's name. Default: the folder's name.")]


def ingest(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="One data set: a folder, or an archive of one.")],
    domain: NameOption = None,
    role: RoleOption = None,
    format: FormatOption = "auto",
    label: LabelOption = None,
    options: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at every file and say what would happen.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a data set in without learning it: copy, version, check, split, draw points."""
    settings: Settings = context.obj
    said = Said(path, domain, role, format, label, _options(options or []))
    values = _look(settings, said) if dry_run else _take_in(settings.root(), said)
    name = values["domain"]
    if as_json:
        emit_json(values)
        return
    what = "would be" if dry_run else "is"
    val = f" {values['num_val']} val," if values["num_val"] else ""
    say(
        f"{name} {what} ingested: {values['num_train']} train,{val} {values['num_test']} test,"
        f" {values['num_quarantined']} quarantined (format {values['format']})"
    )
    for line in values.get("what", ()):
        say(f"  {line}")
    for file, reason in values["reasons"].items():
        say(f"  quarantined {file}: {reason}")
    if not dry_run:
        note(f"report: samcl data report {name}; pictures: samcl data view {name}; next: samcl stream")


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as options of a source, checked.

    Raises:
        UsageError: one is no such pair.
        ConfigError: an option or a value cannot be.
    """
    from samcl_core.domains.drops import source_options
    from samcl_core.errors import UsageError

    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {pair}: expected KEY=VALUE", hint="for example --set instances=each")
        values[key.strip()] = value
    return source_options(values)


def _look(settings: Settings, said: Said) -> dict[str, Any]:
    """What an ingest of ``path`` would find; nothing is written."""
    from flows.cli.bank import workspace_of
    from flows.cli.output import StepProgress
    from flows.cli.sources import opened
    from samcl_core.config import Params, SourceParams
    from samcl_core.stages.ingest import survey

    workspace = workspace_of(settings)
    params = Params() if workspace is None else workspace.params()
    with opened(said.path, params.inbox) as folder, StepProgress("looking") as progress:
        declared = said.about(folder, params)
        options = SourceParams(**said.options).over(params.domains.get(declared.domain, SourceParams()))
        found = survey(folder, params, declared.format, options, progress)
    counts = {f"num_{split}": sum(sample.split == split for sample in found.good) for split in SPLITS}
    return {
        "domain": declared.domain,
        "format": found.format,
        **counts,
        "num_quarantined": len(found.bad),
        "num_left_out": found.num_left_out,
        "reasons": found.reasons,
        "what": _summary(found),
        "stages": {},
    }


def _summary(found: Survey) -> list[str]:
    """What is in a source, in a few lines."""
    lines = []
    labels = Counter(sample.facts.label for sample in found.good if sample.facts.label)
    if labels:
        common = ", ".join(f"{label} {count}" for label, count in labels.most_common(12))
        lines.append(f"classes: {common}" + (f" and {len(labels) - 12} more" if len(labels) > 12 else ""))
    if found.num_left_out:
        lines.append(f"left out: {found.num_left_out} (negatives, other classes, small objects or beyond max_samples)")
    said = found.options.model_dump(exclude_none=True)
    if said:
        lines.append("options: " + ", ".join(f"{key}={value}" for key, value in said.items()))
    return [*lines, *_findings(found.findings)]


def _findings(findings: Sequence[Finding]) -> list[str]:
    """A line for each check that found something, with the first place. What is quarantined is listed by itself."""
    from samcl_core.domains.findings import printable

    first = {found.check: found for found in reversed(findings) if found.severity != "error"}
    counts = Counter(found.check for found in findings)
    lines = []
    for check, found in sorted(first.items(), key=lambda entry: (entry[1].severity != "warning", entry[0])):
        more = f" (and {counts[check] - 1} more)" if counts[check] > 1 else ""
        where = f"{found.files[0]}: " if found.files else ""
        lines.append(printable(f"{found.severity} {check}: {where}{found.message}{more}"))
    return lines


class Declared(NamedTuple):
    """What a data set is to the workspace."""

    domain: str
    role: str
    format: str
    label: str | None


class Said(NamedTuple):
    """What a command line says about a data set; its own ``domain.yaml`` and the workspace may say the rest."""

    path: Path
    domain: str | None
    role: str | None
    format: str
    label: str | None
    options: dict[str, Any]

    def about(self, folder: Path, params: Params) -> Declared:
        """The command line comes first, then ``domain.yaml``, then what the workspace knows.

        Args:
            folder: what ``path`` holds.
            params: the workspace's settings.
        """
        from flows.cli.sources import domain_name
        from samcl_core.domains.drops import card_of

        card = card_of(folder)
        domain = self.domain or card.name or domain_name(self.path.resolve().name)
        known = params.domains.get(domain)
        role = self.role or card.role or (known.role if known else "learn")
        format = self.format if self.format != "auto" else card.format or "auto"
        return Declared(domain, role, format, self.label or card.label)


def _take_in(root: Path, said: Said) -> dict[str, Any]:
    from flows.cli.sources import opened
    from flows.cli.steps import repro_stage
    from samcl_core.domains import Domain
    from samcl_core.domains.datareport import read_report
    from samcl_core.stages.ingest import REPORT
    from tasks.dvc import add_raw, check_source
    from tasks.names import check_name
    from tasks.workspace import Workspace

    workspace = Workspace(root)
    params = workspace.params()
    with opened(said.path, params.inbox, root / UNPACKED) as folder, Board() as board:
        declared = said.about(folder, params)
        name = declared.domain
        check_name(name)
        check_source(root, folder, name)
        workspace.refresh_code()
        workspace.declare(name, declared.role, declared.format, declared.label, said.options)
        board.started(f"receive@{name}")
        board.ended(f"receive@{name}", "ran" if add_raw(root, folder, name) else "skipped")
        for target in (f"ingest@{name}", f"points@{name}"):
            board.run(target, partial(repro_stage, root, target))
    manifest = Domain(workspace.places.domain(name)).manifest()
    is_good = manifest["status"] == "ok"
    counts = {f"num_{split}": int((is_good & (manifest["split"] == split)).sum()) for split in SPLITS}
    bad = manifest[~is_good]
    reasons = dict(zip(bad["id"], bad["reason"], strict=True))
    summary, findings = read_report(workspace.places.domain(name) / REPORT)
    return {
        "domain": name,
        "format": summary.format,
        **counts,
        "num_quarantined": len(bad),
        "reasons": reasons,
        "what": _findings(findings),
        "stages": board.values(),
    }


def arrive(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="One data set: a folder, or an archive of one.")],
    domain: NameOption = None,
    role: RoleOption = None,
    format: FormatOption = "auto",
    label: LabelOption = None,
    options: SetOption = None,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """One domain arrives: take it in, learn its module, publish the new bank. Repeat it to continue after any stop."""
    from flows.cli.sources import opened
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    root = settings.root()
    params = Workspace(root).params()
    said = Said(path, domain, role, format, label, _options(options or []))
    board = Board()
    with opened(path, params.inbox, root / UNPACKED) as folder:
        declared = said.about(folder, params)

        def call() -> Any:
            from flows.arrival import domain_arrival

            return domain_arrival(root, folder, *declared, said.options)

        result = run_flow(root, board, call, keep_server=keep_server)
    answer(root, [result], board, as_json=as_json)


def stream(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of domains, or one folder that holds them. None: what the workspace has."),
    ] = None,
    order: Annotated[str | None, typer.Option(metavar="A,B,C", help="Learn in this order. Default: by name.")] = None,
    natural: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Natural images. Default: a folder COCO or natural*; none: no guess."),
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Evaluated and never learnt. May be repeated.")
    ] = None,
    format: FormatOption = "auto",
    backfill: Annotated[
        bool,
        typer.Option(
            "--backfill", help="Publish all new domains at once: one selector fit, one bank, one decision at the end."
        ),
    ] = False,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Domains arrive: learnt side by side, published in order, each as a bank. Repeat it to continue."""
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    root = settings.root()
    params = Workspace(root).params()
    sources = _sources(paths or [], params, order, natural or [], unseen or [])
    if not sources:
        _refuse_options_without_paths(order, natural, unseen)
    board = Board()

    def call() -> Any:
        from flows.arrival import Arrival
        from flows.stream import domain_stream

        arrivals = [Arrival(s.domain, str(s.path), s.role, format) for s in sources]
        return domain_stream(root, arrivals, backfill=backfill)

    answer(root, run_flow(root, board, call, keep_server=keep_server), board, as_json=as_json)


def _sources(
    paths: Sequence[Path], params: Params, order: str | None, natural: Sequence[str], unseen: Sequence[str]
) -> list[Source]:
    from flows.cli.sources import resolve_sources
    from samcl_core.errors import UsageError

    if not paths:
        if not params.domains:
            raise UsageError(
                "the workspace has no domain yet and no folder is given", hint="samcl stream FOLDER_OF_DOMAINS"
            )
        return []
    declared = {name: domain.role for name, domain in params.domains.items()}
    given = [name for name in (order or "").split(",") if name]
    sources = resolve_sources(paths, natural=natural, unseen=unseen, order=given, declared=declared)
    for source in sources:
        if source.is_guessed:
            note(f"{source.domain} is taken as natural images because of its name (--natural none: learn it)")
    learnt = [source.domain for source in sources if source.role == "learn"]
    others = [f"{source.domain} ({source.role})" for source in sources if source.role != "learn"]
    note(
        f"to learn, in order: {', '.join(learnt) or 'nothing'}"
        + (f"; not learnt: {', '.join(others)}" if others else "")
    )
    return sources


def _refuse_options_without_paths(order: str | None, natural: Any, unseen: Any) -> None:
    from samcl_core.errors import UsageError

    given = {"--order": order, "--natural": natural, "--unseen": unseen}
    if wrong := [name for name, value in given.items() if value]:
        raise UsageError(f"{wrong[0]} needs folders: without them the workspace's own stream is continued")
