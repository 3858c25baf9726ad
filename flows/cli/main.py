"""The command ``samcl``: one app, one place where errors become a message, a hint and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import (
    arrivals,
    bank,
    bench,
    benchmark,
    checkpoints,
    data,
    demo,
    deploy,
    lineage,
    predict,
    pretrain,
    promotion,
    serve,
    steps,
    workspace,
)
from flows.cli.output import Settings, complain

__all__ = ["app", "run"]

app = typer.Typer(
    name="samcl",
    help="Continual learning for Segment Anything as a data pipeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("init")(workspace.init)
app.command("demo")(demo.demo)
app.command("ingest")(arrivals.ingest)
app.command("arrive")(arrivals.arrive)
app.command("stream")(arrivals.stream)
app.command("inbox")(deploy.inbox)
app.command("deploy")(deploy.deploy)
app.command("evaluate")(steps.evaluate)
app.command("register")(steps.register)
app.command("promote")(promotion.promote)
app.command("rollback")(promotion.rollback)
app.command("reproduce")(lineage.reproduce)
app.command("predict")(predict.predict)
app.command("serve")(serve.serve)
app.command("bench")(bench.bench)
app.command("benchmark")(benchmark.benchmark)
app.command("pretrain")(pretrain.pretrain)
app.command("step")(steps.step)
app.command("remove")(workspace.remove)
app.command("server")(workspace.server)
app.add_typer(bank.app, name="bank")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(data.app, name="data")

DEBUG = "--debug"
INTERRUPTED = 130


def _version(is_wanted: bool) -> None:
    if is_wanted:
        from samcl_core import __version__

        typer.echo(f"samcl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    start: Annotated[
        Path, typer.Option("-C", "--workspace", metavar="DIR", help="Workspace, or a folder inside it.")
    ] = Path(),
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the whole traceback of an error. Anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = Settings(start=start)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    is_debug = DEBUG in given or bool(os.environ.get("SAMCL_DEBUG"))
    try:
        code = app([word for word in given if word != DEBUG], standalone_mode=False, prog_name="samcl")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as exc:  # click's way to end where a reader went away
        code = 0 if isinstance(exc.__context__, BrokenPipeError) else exc.code
    except Exception as exc:
        if is_debug:
            import traceback

            traceback.print_exc()
        code = _report(exc, given)
    if code == INTERRUPTED:
        complain("interrupted", "the same command continues where this one stopped")
    _flush()
    sys.exit(code if isinstance(code, int) else 0)


def _flush() -> None:
    """A reader that went away (``samcl bank show | head -1``) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(exc: Exception, given: list[str]) -> int:
    if isinstance(exc, BrokenPipeError):
        return 0
    if hasattr(exc, "format_message") and hasattr(exc, "exit_code"):  # typer's own: a wrong option or argument
        return _report_usage(exc)
    from samcl_core.errors import SamclError

    if isinstance(exc, SamclError):
        complain(exc.message, exc.hint)
        return exc.exit_code
    text = " ".join(str(exc).split()) or "no message"
    complain(
        f"{type(exc).__name__}: {text[:500]}",
        f"samcl {DEBUG} {' '.join(word for word in given if word != DEBUG)}".rstrip(),
    )
    return 1


def _report_usage(exc: Exception) -> int:
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError":
        typer.echo(context.get_help() if context else "")
        return int(getattr(exc, "exit_code", 2))
    path = context.command_path if context else "samcl"
    complain(str(exc.format_message()), f"{path} --help")  # type: ignore[attr-defined]
    return int(getattr(exc, "exit_code", 2))
