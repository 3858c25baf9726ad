"""DVC runs every step: one helper that reproduces a stage, one that takes arriving data in, and small readers."""

from __future__ import annotations

import contextlib
import filecmp
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.errors import SamclError, UsageError
from samcl_core.files import staged_folder, write_atomic
from samcl_core.progress import Progress, silent
from tasks.ending import check_ending
from tasks.names import check_name
from tasks.processes import clean_environment, end_group, read_record, same_process, this_process, write_record

__all__ = [
    "Busy",
    "NoRemote",
    "Outcome",
    "StageFailed",
    "add_raw",
    "alone",
    "check_source",
    "end_leftovers",
    "forget_stages",
    "lock_digest",
    "pull",
    "push",
    "raw_digests",
    "repro",
    "same_tree",
    "status",
]

Outcome = Literal["ran", "cached", "skipped"]
"""What DVC did: ran the command, took the outputs from its cache, or found nothing changed."""

_POLL_S = 0.1
_LOCK_TIMEOUT_S = 600.0
_TAIL_LINES = 15
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock", re.IGNORECASE)
_JUNK = frozenset({".git", ".dvc", ".dvcignore", ".gitignore", ".DS_Store", "Thumbs.db", "__MACOSX", "desktop.ini"})


class Busy(SamclError):
    """Another step holds files that DVC has to look at."""


class NoRemote(SamclError):
    """DVC knows of no place to copy data to."""


class StageFailed(SamclError):
    """A pipeline step failed.

    Attributes:
        target: the stage, such as ``train@Kvasir``.
        log: file with the whole output.
        returncode: what DVC exited with.
        output: the last lines of the output.
    """

    def __init__(
        self, message: str, *, target: str, log: Path, returncode: int, output: str, exit_code: int = 1, hint: str = ""
    ) -> None:
        self.target = target
        self.log = log
        self.returncode = returncode
        self.output = output
        self.exit_code = exit_code
        super().__init__(message, hint=hint)

    def __reduce__(self) -> Any:
        return _failed_again, (self.message, self.hint, self.__dict__)


def _failed_again(message: str, hint: str, state: dict[str, Any]) -> StageFailed:
    names = ("target", "log", "returncode", "output", "exit_code")
    return StageFailed(message, hint=hint, **{name: state[name] for name in names})


def repro(
    root: Path,
    target: str,
    *,
    on_progress: Progress = silent,
    env: Mapping[str, str] | None = None,
    lock_timeout_s: float = _LOCK_TIMEOUT_S,
    keep_open: Sequence[int] = (),
) -> Outcome:
    """Bring one stage up to date, without its upstream stages, in a process group of its own.

    A group that a killed run of the same target left behind is ended first. A message about DVC's locks is waited out;
    nothing else is tried again. When the wait is interrupted the group is ended before the exception goes on.

    Args:
        root: the workspace.
        target: stage or ``stage@domain``.
        on_progress: told what the step reports while it runs.
        env: added to the environment of the step.
        lock_timeout_s: how long other steps may hold the files that this one needs.
        keep_open: open files that the step's process group holds, too.

    Raises:
        Ended: the flow around it was interrupted.
        StageFailed: the step failed; its own error first, then where the whole output is.
    """
    record = root / ".samcl" / "run" / f"{target}.json"
    end_leftover(record, target)
    log = root / ".samcl" / "logs" / f"{target}.log"
    waits = _waits(lock_timeout_s)
    while True:
        check_ending()
        code = _run(root, target, log, record, on_progress, dict(env or {}), keep_open)
        output = log.read_text(encoding="utf-8", errors="replace")
        if code == 0:
            return _outcome(output, target)
        is_busy = _BUSY.search(output) and not _started(output, target)
        if not is_busy or not next(waits):
            raise _failure(target, log, code, output)


def _waits(timeout_s: float) -> Iterator[bool]:
    """Each item waits longer, 8 s at most; False when the time is over."""
    deadline = time.monotonic() + timeout_s
    wait_s = 0.5
    while time.monotonic() + wait_s <= deadline:
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 8.0)
        yield True
    while True:
        yield False


def end_leftovers(root: Path) -> int:
    """End what killed commands left running here; returns how many processes. Steps of live commands stay."""
    records = sorted((root / ".samcl" / "run").glob("*.json"))
    values = {record: read_record(record) for record in records}
    lost = [record for record, found in values.items() if found is not None and not _has_live_owner(found)]
    return sum(end_leftover(record, record.stem) for record in lost)


def end_leftover(record: Path, target: str) -> int:
    """End what a killed run of ``target`` left running; returns how many processes.

    The group is the recorded one only if its leader is that very process or a member names the target's step.
    """
    found = read_record(record)
    if found is None:
        return 0
    if _has_live_owner(found):
        raise SamclError(
            f"{target} is being run by another command (process {found['owner']['pid']})",
            hint="wait until it is done, then run the same command again",
        )
    stage, _, domain = target.partition("@")
    step = None if same_process(found) else f"step {stage}" + (f" {domain}" if domain else "")
    ended = end_group(found["pid"], command_has=step)
    record.unlink(missing_ok=True)
    return ended


def _has_live_owner(found: dict[str, Any]) -> bool:
    owner = found.get("owner")
    if not isinstance(owner, dict) or owner.get("pid") == os.getpid():
        return False
    return same_process(owner) and same_process(found)


def _run(
    root: Path,
    target: str,
    log: Path,
    record: Path,
    on_progress: Progress,
    env: dict[str, str],
    keep_open: Sequence[int],
) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    reports = root / ".samcl" / "progress" / f"{target}.jsonl"
    reports.parent.mkdir(parents=True, exist_ok=True)
    reports.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", target]
    environment = clean_environment({"SAMCL_PROGRESS_FILE": str(reports), **env})
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        try:
            write_record(record, process.pid, target=target, owner=this_process())
            _follow(process, reports, on_progress)
        finally:
            # Also after success: a step that left a child behind must not write into the next one's files.
            end_group(process.pid)
            process.wait()
            record.unlink(missing_ok=True)
    return process.returncode


def _follow(process: subprocess.Popen[bytes], reports: Path, on_progress: Progress) -> None:
    position = 0
    while True:
        is_over = process.poll() is not None
        position = _report(reports, position, on_progress)
        if is_over:
            return
        check_ending()
        time.sleep(_POLL_S)


def _report(reports: Path, position: int, on_progress: Progress) -> int:
    """Pass the newest whole line on; the lines between are older news."""
    try:
        with reports.open("rb") as stream:
            stream.seek(position)
            new = stream.read()
    except FileNotFoundError:
        return position
    whole, newline, _ = new.rpartition(b"\n")
    if not newline:
        return position
    try:
        line = json.loads(whole.rpartition(b"\n")[2])
        on_progress(str(line["what"]), int(line["done"]), int(line["total"]))
    except (ValueError, KeyError, TypeError):
        pass
    return position + len(whole) + 1


def _started(output: str, target: str) -> bool:
    return f"Running stage '{target}'" in output


def _outcome(output: str, target: str) -> Outcome:
    if _started(output, target):
        return "ran"
    if re.search(rf"^Stage '{re.escape(target)}' is cached", output, re.MULTILINE):
        return "cached"
    return "skipped"


def _failure(target: str, log: Path, code: int, output: str) -> StageFailed:
    message, hint = _own_error(output)
    exited = re.findall(r"exited with (-?\d+)", output)
    tail = "\n".join(line for line in output.splitlines() if line.strip())
    tail = "\n".join(tail.splitlines()[-_TAIL_LINES:])
    what = message or f"{target} failed:\n{tail}"
    return StageFailed(
        f"{what}\n  step {target}; whole output in {log}",
        target=target,
        log=log,
        returncode=code,
        output=tail,
        exit_code=2 if exited and exited[-1] == "2" else 1,
        hint=hint,
    )


def _own_error(output: str) -> tuple[str, str]:
    """The last ``error: ...`` block that a step wrote, and its ``next: ...``."""
    lines = output.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return "", ""
    message = [lines[starts[-1]].removeprefix("error: ")]
    for line in lines[starts[-1] + 1 :]:
        if line.lstrip().startswith("next: "):
            return "\n".join(message), line.lstrip().removeprefix("next: ")
        if not line.strip() or line.startswith("ERROR:"):
            break
        message.append(line)
    return "\n".join(message), ""


def add_raw(root: Path, source: Path, domain: str) -> bool:
    """Copy arriving data to ``data/raw/<domain>`` and put it under DVC. The same again changes nothing.

    New content takes the place of the old in one step. A source that already is that folder is only put under DVC.
    Links to files inside the source are followed; files of git, DVC and desktop systems are left out.

    Returns:
        Whether the data of the domain is new or changed.

    Raises:
        UsageError: the source is missing, no folder, empty, around the workspace, or has links that lead out of it.
        SamclError: the disk is full, or ``dvc add`` failed.
    """
    check_name(domain)
    target = root / "data" / "raw" / domain
    source = source.expanduser()
    names = check_source(root, source, domain)
    if source.resolve() != target.resolve() and not same_tree(source, target, names):
        with staged_folder(target) as staging:
            for name in names:
                copy = staging / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, copy)
    tracked = target.with_name(f"{domain}.dvc")
    before = tracked.read_bytes() if tracked.is_file() else None
    _patiently(root, "add", "--quiet", f"data/raw/{domain}")
    return before != tracked.read_bytes()


def check_source(root: Path, source: Path, domain: str) -> list[str]:
    """Relative names of the files of a source, sorted, after everything that could be wrong with it was looked at.

    Raises:
        UsageError: as for ``add_raw``; nothing was changed.
    """
    if not source.exists():
        raise UsageError(f"{source} does not exist", hint="give the folder that holds the data set")
    if not source.is_dir():
        raise UsageError(f"{source} is a file, expected a folder", hint="unpack it and give the folder")
    place = source.resolve()
    target = (root / "data" / "raw" / domain).resolve()
    if target != place and (place in (root.resolve(), *root.resolve().parents) or place in target.parents):
        raise UsageError(f"{source} holds the workspace itself", hint="give the folder of one data set")
    names = sorted(_names(place, place))
    if not names:
        raise UsageError(f"{source} is empty", hint="give the folder that holds the data set")
    return names


def _names(folder: Path, top: Path) -> Iterator[str]:
    for entry in sorted(folder.iterdir()):
        if entry.name in _JUNK:
            continue
        if entry.is_symlink():
            _check_link(entry, top)
        if entry.is_dir():
            yield from _names(entry, top)
        elif entry.is_file():
            yield entry.relative_to(top).as_posix()
        else:
            raise UsageError(f"{entry} is neither a file nor a folder", hint="remove it, then run the command again")


def _check_link(link: Path, top: Path) -> None:
    hint = "replace the link by the file it means, then run the same command again"
    try:
        end = link.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise UsageError(f"link {link} leads nowhere", hint=hint) from exc
    if top not in end.parents:
        raise UsageError(f"link {link} leads out of the source, to {end}", hint=hint)
    if end in link.parents:
        raise UsageError(f"link {link} leads to a folder around it", hint=hint)


def same_tree(source: Path, target: Path, names: list[str] | None = None) -> bool:
    """Whether both folders hold the same files with the same bytes."""
    if not target.is_dir():
        return False
    wanted = sorted(_names(source.resolve(), source.resolve())) if names is None else names
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    return wanted == there and all(filecmp.cmp(source / name, target / name, shallow=False) for name in wanted)


def status(root: Path) -> dict[str, Any]:
    """What is not up to date: stage or ``.dvc`` file to DVC's reasons; empty when everything is.

    Raises:
        Busy: a step that runs now holds some of the files.
        SamclError: DVC cannot read the workspace.
    """
    values: dict[str, Any] = json.loads(_dvc(root, "status", "--json") or "{}")
    return values


def push(root: Path, remote: str | None = None) -> None:
    """Copy what is tracked to a remote, the default one when ``None``. What is there already is not sent again.

    Raises:
        NoRemote: no remote is set up.
        SamclError: it cannot be reached, or does not take the files; those that it took stay.
    """
    _dvc(root, "push", *_remote(remote))


def pull(root: Path, targets: Sequence[str], remote: str | None = None) -> None:
    """Bring tracked files back from a remote, the default one when ``None``.

    Raises:
        NoRemote: no remote is set up.
        SamclError: it cannot be reached, or does not have the files.
    """
    _dvc(root, "pull", *_remote(remote), *targets)


def _remote(remote: str | None) -> tuple[str, ...]:
    return () if remote is None else ("--remote", remote)


def raw_digests(root: Path) -> dict[str, str]:
    """Domain to DVC's digest of its data set as it arrived (``<md5>.dir``), from ``.dvc`` files that can be read."""
    found = {}
    for path in sorted((root / "data" / "raw").glob("*.dvc")):
        with contextlib.suppress(OSError, UnicodeDecodeError, YAMLError, KeyError, IndexError, TypeError):
            values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
            found[path.stem] = str(values["outs"][0]["md5"])
    return found


def lock_digest(root: Path, stage: str, out: str) -> str | None:
    """The digest that ``dvc.lock`` holds for an output of a stage (folders end in ``.dir``); ``None`` when it has none.

    Raises:
        SamclError: ``dvc.lock`` cannot be read.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        return None
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, YAMLError) as exc:
        raise SamclError(f"{path} cannot be read: {exc}", hint="git checkout dvc.lock") from exc
    for entry in values.get("stages", {}).get(stage, {}).get("outs", []):
        if entry.get("path") == out:
            return str(entry["md5"])
    return None


def forget_stages(root: Path, domain: str) -> bool:
    """Take the entries of a removed domain out of ``dvc.lock``; True when there were any."""
    path = root / "dvc.lock"
    if not path.is_file():
        return False
    with alone(root):
        values: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
        stages: dict[str, Any] = values.get("stages", {})
        kept = {name: entry for name, entry in stages.items() if name.partition("@")[2] != domain}
        if len(kept) == len(stages):
            return False
        stream = io.StringIO()
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.dump(values | {"stages": kept}, stream)
        write_atomic(path, stream.getvalue().encode())
    return True


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Nobody else's DVC command writes ``dvc.lock`` or ``.dvc`` files inside the block; their steps go on."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        yield


def _patiently(root: Path, *arguments: str) -> str:
    waits = _waits(_LOCK_TIMEOUT_S)
    while True:
        try:
            return _dvc(root, *arguments)
        except Busy:
            if not next(waits):
                raise


def _dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    done = subprocess.run(command, cwd=root, env=clean_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        tail = "\n".join(lines[-_TAIL_LINES:])
        if _BUSY.search(done.stderr):
            raise Busy(f"dvc {' '.join(arguments)}: another step runs in {root}:\n{tail}", hint="wait until it is done")
        if "no remote specified" in tail:
            raise NoRemote(f"no DVC remote is set up in {root}", hint="dvc remote add --default NAME URL")
        hint = "samcl init" if "not inside of a DVC repository" in tail else ""
        raise SamclError(f"dvc {' '.join(arguments)} failed in {root}:\n{tail}", hint=hint)
    return done.stdout
