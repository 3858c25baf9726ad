"""``samcl bank``: look into banks, prove that they are whole, exchange them with the published scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.lineage import tell_banks, tell_provenance
from flows.cli.output import Settings, brief, emit_json, say, show_table

if TYPE_CHECKING:
    from tasks.workspace import Workspace

__all__ = ["app", "bank_folder", "is_version", "workspace_of"]

app = typer.Typer(help="Banks: show, verify, of, history, import, export.", no_args_is_help=True, rich_markup_mode=None)

BankArgument = Annotated[
    str | None,
    typer.Argument(
        help="A bank folder, a step of the workspace, a registered version, or @champion. Default: the newest bank."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def workspace_of(settings: Settings) -> Workspace | None:
    """The workspace around the start folder, ``None`` outside of any."""
    from samcl_core.errors import UsageError
    from tasks.workspace import Workspace

    try:
        return Workspace(settings.root())
    except UsageError:
        return None


def bank_folder(settings: Settings, bank: str | None) -> Path:
    """The folder that a command line means: a path, a step of the workspace, a version, ``@champion``, the newest bank.

    Raises:
        UsageError: there is no such bank.
    """
    from samcl_core.errors import UsageError

    if bank is not None and (Path(bank) / "bank.json").is_file():
        return Path(bank)
    workspace = workspace_of(settings)
    if workspace is None:
        what = (
            "no bank is named and this is no workspace" if bank is None else f"{bank} is no bank (no bank.json in it)"
        )
        raise UsageError(what, hint="name a bank folder")
    if bank is not None and is_version(workspace, bank):
        from tasks.registry import load_registered

        return load_registered(workspace.root, bank)
    params = workspace.params()
    if bank is None:
        folder = workspace.places.latest_bank(params)
        if folder is None:
            raise UsageError(f"{workspace.root} has no bank yet", hint="samcl stream FOLDER_OF_DOMAINS")
        return folder
    folder = workspace.places.bank(bank)
    if "/" in bank or not (folder / "bank.json").is_file():
        steps = [name for name in ("base", *params.steps()) if workspace.places.bank(name).is_dir()]
        raise UsageError(f"{bank!r} is neither a bank folder nor a step of {workspace.root}, expected one of {steps}")
    return folder


def is_version(workspace: Workspace | None, bank: str | None) -> bool:
    """Whether a command line means a registered version: ``@alias``, or a number that is no step of the workspace."""
    if workspace is None or bank is None or (Path(bank) / "bank.json").is_file():
        return False
    return bank.startswith("@") or (bank.isdecimal() and not workspace.places.bank(bank).is_dir())


@app.command()
def show(context: typer.Context, bank: BankArgument = None, as_json: JsonOption = False) -> None:
    """What a bank holds and where its bytes go. A registered version also tells what made it."""
    from samcl_core.bank import describe_bank

    values = describe_bank(bank_folder(context.obj, bank))
    workspace, found = workspace_of(context.obj), None
    if workspace is not None and bank is not None and is_version(workspace, bank):
        from tasks.provenance import provenance

        found = provenance(workspace.root, bank)
    if as_json:
        emit_json(values if found is None else {**values, "registered": found})
        return
    if found is not None:
        tell_provenance(found)
    say(f"bank {values['digest']}")
    say(f"folder {values['folder']} ({values['total_bytes']:,} bytes)")
    say(f"backbone {values['backbone']['name']} {values['backbone']['sha256']}")
    say(f"selector {values['selector'].get('kind', '')}, {len(values['modules'])} module(s)")
    if values["waiting"]:
        say(f"inside a back-fill: the selector does not know {', '.join(values['waiting'])} yet")
    if values["modules"]:
        header = ["step", "domain", "kind", "weights", "module", "training data", "trained"]
        show_table(header, [[str(number), *_row(module)] for number, module in enumerate(values["modules"], 1)])
    _show_sizes(values["sizes"])


def _row(module: dict[str, Any]) -> list[str]:
    digests = [module["digest"][:12], module["data_digest"][:12]]
    return [module["domain"], module["kind"], f"{module['num_weights']:,}", *digests, brief(module["metrics"])]


def _show_sizes(sizes: dict[str, Any]) -> None:
    """Every byte of the folder by part, by domain and by number format: three sums with one total."""
    total = sizes["total_bytes"]
    columns = ("tensors", "header", "record", "bytes")
    rows = [[part["part"], *(f"{part[name]:,}" for name in columns)] for part in sizes["parts"]]
    rows.append(["total", *(f"{sum(part[name] for part in sizes['parts']):,}" for name in columns)])
    show_table(["bytes of", *columns[:-1], "all"], rows, numbers=True)
    if sizes["domains"]:
        rows = [
            [entry["domain"], *(f"{entry[name]:,}" for name in ("module", "state", "bytes")), f"{entry['frac']:.1%}"]
            for entry in sizes["domains"]
        ]
        rows.append(["shared", "", "", f"{sizes['shared_bytes']:,}", f"{sizes['shared_bytes'] / total:.1%}"])
        show_table(["bytes for", "module", "later fits", "all", "share"], rows, numbers=True)
    say("bytes by type: " + ", ".join(f"{name} {num_bytes:,}" for name, num_bytes in sizes["types"].items()))


@app.command()
def verify(context: typer.Context, bank: BankArgument = None, as_json: JsonOption = False) -> None:
    """Prove that every file of a bank is there, unchanged and readable. Exits with 1 when one is not."""
    from samcl_core.bank import verify_bank
    from samcl_core.errors import IntegrityError

    folder = bank_folder(context.obj, bank)
    problems = verify_bank(folder)
    if as_json:
        emit_json({"folder": str(folder), "is_whole": not problems, "problems": problems})
        raise typer.Exit(1 if problems else 0)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        hint = "dvc checkout, or take the bank from the registry again"
        raise IntegrityError(f"{folder}: {len(problems)} problem(s){lines}", hint=hint)
    from samcl_core.bank import Bank

    say(f"{folder}: whole, digest {Bank.load(folder).digest}")


@app.command("of")
def of(
    context: typer.Context,
    domain: Annotated[str, typer.Argument(help="A domain.")],
    as_json: JsonOption = False,
) -> None:
    """Which registered banks contain a domain, by the version of its data."""
    from tasks.provenance import banks_of

    settings: Settings = context.obj
    versions = banks_of(settings.root(), domain)
    if as_json:
        emit_json({"domain": domain, "data": versions})
    else:
        tell_banks(domain, versions)


@app.command()
def history(context: typer.Context, as_json: JsonOption = False) -> None:
    """What was champion when, by whom or which run, and why. Exits with 1 when the ledger was changed afterwards."""
    from flows.cli.promotion import show_history

    settings: Settings = context.obj
    show_history(settings.root(), as_json=as_json)


@app.command("import-samcl")
def import_samcl(
    folder: Annotated[Path, typer.Argument(help="Published files: <domain>.pth and Module_Selector.pth.")],
    out: Annotated[Path, typer.Argument(help="The bank folder to write; must not exist.")],
    backbone: Annotated[
        str | None, typer.Option(help="The model they belong to. Default: the one whose blocks the modules fit.")
    ] = None,
    backbone_sha256: Annotated[
        str | None, typer.Option(help="sha256 of its checkpoint. Default: the official checkpoint's.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="The selector's outputs in order. Default: the published ones.")
    ] = None,
    natural: Annotated[
        str | None, typer.Option(metavar="A,B", help="Those of the classes without a module. Default: COCO.")
    ] = None,
) -> None:
    """Make a bank from the files that the published SAMCL code wrote. Nothing in them is executed."""
    from samcl_core.bank import import_samcl as read
    from samcl_core.bank.imports import published_backbone
    from samcl_core.errors import UsageError

    backbone = backbone or published_backbone(folder)
    if backbone is None:
        raise UsageError(f"the modules in {folder} fit none of the published models", hint="--backbone NAME")
    digest = backbone_sha256 or _official_digest(backbone)
    _refuse_existing(out)
    chosen: dict[str, Any] = {}
    if classes is not None:
        chosen["classes"] = tuple(name for name in classes.split(",") if name)
    if natural is not None:
        chosen["natural"] = tuple(name for name in natural.split(",") if name)
    bank = read(folder, backbone, digest, **chosen)
    bank.save(out)
    say(f"{out}: {len(bank.names)} module(s) for {backbone}: {', '.join(bank.names)}; digest {bank.digest}")


def _official_digest(backbone: str) -> str:
    from samcl_core.backbones.checkpoints import KNOWN
    from samcl_core.errors import UsageError

    if backbone not in KNOWN:
        raise UsageError(
            f"backbone {backbone!r} has no official checkpoint, expected one of {list(KNOWN)}",
            hint="--backbone-sha256 DIGEST  # samcl checkpoints hash FILE prints it",
        )
    return KNOWN[backbone].sha256


def _refuse_existing(folder: Path) -> None:
    from samcl_core.errors import UsageError

    if folder.exists():
        raise UsageError(f"{folder} exists; a bank never replaces another folder", hint="name a new folder")


@app.command("export")
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    bank: Annotated[
        str | None, typer.Option(help="A bank folder, or a step of the workspace. Default: its newest bank.")
    ] = None,
    format: Annotated[str, typer.Option(help="samcl: the files that the published scripts load.")] = "samcl",
) -> None:
    """Write a bank in another format; says what that format cannot hold."""
    from samcl_core.bank import Bank, export_samcl
    from samcl_core.errors import UsageError

    if format != "samcl":
        raise UsageError(f"format is {format!r}, expected 'samcl'")
    _refuse_existing(out)
    summary = export_samcl(Bank.load(bank_folder(context.obj, bank)), out)
    say(f"{out}: {', '.join(summary['modules'])}")
    for limit in summary["limits"]:
        say(f"  not in this format: {limit}")
