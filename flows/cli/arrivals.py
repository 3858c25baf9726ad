"""``samcl ingest``, ``arrive`` and ``stream``: data come in and are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.board import Board
from flows.cli.output import Settings, emit_json, note, say
from flows.cli.running import JsonOption, KeepOption, answer, run_flow

if TYPE_CHECKING:
    from flows.cli.sources import Source
    from samcl_core.config import Params

__all__ = ["arrive", "ingest", "stream"]

RoleOption = Annotated[
    str | None,
    typer.Option(help="learn, natural (what the plain model must keep) or unseen (evaluated only). Default: learn."),
]
FormatOption = Annotated[str, typer.Option(help="Layout of the source: auto, samcl or folders.")]
LabelOption = Annotated[str | None, typer.Option(help="A text for people, kept in params.yaml.")]
NameOption = Annotated[str | None, typer.Option("--domain", help="The domain's name. Default: the folder's name.")]


def ingest(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Folder of one data set: images and masks.")],
    domain: NameOption = None,
    role: RoleOption = None,
    format: FormatOption = "auto",
    label: LabelOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at every file and say what would happen.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a data set in without learning it: copy, version, check, split, draw points."""
    from flows.cli.sources import domain_name

    settings: Settings = context.obj
    name = domain or domain_name(path.resolve().name)
    values = _look(settings, path, format) if dry_run else _take_in(settings.root(), path, name, role, format, label)
    values = {"domain": name, **values}
    if as_json:
        emit_json(values)
        return
    what = "would be" if dry_run else "is"
    say(
        f"{name} {what} ingested: {values['num_train']} train, {values['num_test']} test,"
        f" {values['num_quarantined']} quarantined (format {values['format']})"
    )
    for file, reason in values["reasons"].items():
        say(f"  quarantined {file}: {reason}")
    if not dry_run:
        note("next: samcl stream")


def _look(settings: Settings, path: Path, format: str) -> dict[str, Any]:
    """What an ingest of ``path`` would find; nothing is written."""
    from flows.cli.bank import workspace_of
    from flows.cli.output import StepProgress
    from samcl_core.config import Params
    from samcl_core.errors import UsageError
    from samcl_core.stages.ingest import survey

    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", hint="give the folder that holds the data set")
    workspace = workspace_of(settings)
    params = Params() if workspace is None else workspace.params()
    with StepProgress("looking") as progress:
        found = survey(path, params, format, progress)
    counts = {f"num_{split}": sum(pair.split == split for pair in found.good) for split in ("train", "test")}
    return {"format": found.format, **counts, "num_quarantined": len(found.bad), "reasons": found.reasons, "stages": {}}


def _take_in(root: Path, path: Path, name: str, role: str | None, format: str, label: str | None) -> dict[str, Any]:
    from flows.cli.steps import repro_stage
    from samcl_core.domains import Domain
    from tasks.dvc import add_raw, check_source
    from tasks.names import check_name
    from tasks.workspace import Workspace

    workspace = Workspace(root)
    check_name(name)
    known = workspace.params().domains.get(name)
    check_source(root, path, name)
    workspace.refresh_code()
    with Board() as board:
        workspace.declare(name, role or (known.role if known else "learn"), format, label)
        board.started(f"receive@{name}")
        board.ended(f"receive@{name}", "ran" if add_raw(root, path, name) else "skipped")
        for target in (f"ingest@{name}", f"points@{name}"):
            board.run(target, partial(repro_stage, root, target))
    manifest = Domain(workspace.places.domain(name)).manifest()
    is_good = manifest["status"] == "ok"
    counts = {f"num_{split}": int((is_good & (manifest["split"] == split)).sum()) for split in ("train", "test")}
    bad = manifest[~is_good]
    reasons = dict(zip(bad["id"], bad["reason"], strict=True))
    declared = workspace.params().domains[name].format
    return {
        "format": declared,
        **counts,
        "num_quarantined": len(bad),
        "reasons": reasons,
        "stages": board.values(),
    }


def arrive(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Folder of one data set: images and masks.")],
    domain: NameOption = None,
    role: RoleOption = None,
    format: FormatOption = "auto",
    label: LabelOption = None,
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """One domain arrives: take it in, learn its module, publish the new bank. Repeat it to continue after any stop."""
    from flows.cli.sources import domain_name
    from samcl_core.domains.drops import card_of
    from tasks.workspace import Workspace

    settings: Settings = context.obj
    root = settings.root()
    card = card_of(path.resolve())
    name = domain or card.name or domain_name(path.resolve().name)
    known = Workspace(root).params().domains.get(name)
    wanted = role or card.role or (known.role if known else "learn")
    layout = format if format != "auto" else card.format or format
    board = Board()

    def call() -> Any:
        from flows.arrival import domain_arrival

        return domain_arrival(root, path.resolve(), name, wanted, layout, label or card.label)

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
    keep_server: KeepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Domains arrive one after the other; each is learnt and published before the next. Repeat it to continue."""
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

        return domain_stream(root, [Arrival(s.domain, str(s.path), s.role, format) for s in sources])

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
