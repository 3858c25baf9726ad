"""``samcl checkpoints``: the official weights of the frozen models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import StepProgress, emit_json, note, say, show_table

__all__ = ["app"]

app = typer.Typer(help="The official weights: list, fetch, hash.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_all(
    verify: Annotated[bool, typer.Option("--verify", help="Also check the sha256 of files that are here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """The checkpoints that are known by name, and which of them are on this machine."""
    from samcl_core.backbones.checkpoints import KNOWN, checkpoint_dir
    from samcl_core.files import sha256_file

    folder = checkpoint_dir()
    entries = []
    for name, known in KNOWN.items():
        path = folder / known.file
        state = "here" if path.is_file() else "missing"
        if verify and state == "here":
            state = "verified" if sha256_file(path) == known.sha256 else "damaged"
        entries.append({"name": name, "state": state, "file": known.file, "sha256": known.sha256, "url": known.url})
    if as_json:
        emit_json({"folder": str(folder), "checkpoints": entries})
        return
    rows = [[entry["name"], entry["state"], entry["file"], entry["sha256"][:12]] for entry in entries]
    show_table(["name", "state", "file", "sha256"], [["sam_nano", "built in", "–", "–"], *rows])
    say(f"folder: {folder}")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names from `samcl checkpoints list`.")],
    url: Annotated[str | None, typer.Option(help="A mirror of the one file.")] = None,
) -> None:
    """Download checkpoints. An interrupted download continues; a file with another sha256 is never used."""
    from samcl_core.backbones.checkpoints import fetch as download
    from samcl_core.errors import UsageError

    if url is not None and len(names) != 1:
        raise UsageError(f"--url is for one checkpoint, found {len(names)} names")
    for name in names:
        with StepProgress(name) as progress:
            path = download(name, _in_mib(progress), url=url)
        say(f"{name}: {path}")


def _in_mib(progress: StepProgress) -> StepProgress:
    mib = 1 << 20

    def report(what: str, done: int, total: int) -> None:
        progress(f"{what} (MiB)", done // mib, max(1, total // mib) if total else 0)

    return report  # type: ignore[return-value]


@app.command("hash")
def hash_file(
    files: Annotated[list[Path], typer.Argument(help="Files of weights.")],
) -> None:
    """Print the sha256 of files, for `backbone.sha256` in params.yaml."""
    from samcl_core.backbones.checkpoints import KNOWN
    from samcl_core.errors import UsageError
    from samcl_core.files import sha256_file

    by_digest = {known.sha256: name for name, known in KNOWN.items()}
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file} is not a file")
        digest = sha256_file(file)
        say(f"{digest}  {file}")
        if digest in by_digest:
            note(f"that is the official {by_digest[digest]}")
