"""Make a registered bank again from its record alone: its commit, its data, its pipeline; and compare."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.config import load_params
from samcl_core.errors import SamclError, UsageError
from samcl_core.files import digest_files
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import BASE, Places
from tasks import dvc
from tasks.code import CODE_FILE, stage_digests, write_code
from tasks.git import changed_files, file_at, git
from tasks.lineage import NONE
from tasks.processes import clean_environment, end_group
from tasks.registry import BankVersion, load_registered, read_version
from tasks.tracking import open_tracker

__all__ = ["Reproduction", "reproduce"]

_STAGES = ("ingest", "points", "embed", "train", "base", "bank")
_CACHE = "samcl-workspace-cache"
"""Name under which the fresh folder knows the workspace's own DVC cache, which is laid out like a remote."""

_STARTED = re.compile(r"^Running stage '(.+)':")
_REPORT = re.compile(r"^[a-z]+(?: \S+)?: (.+) (\d+)/(\d+|\?)$")

Started = Callable[[str], None]


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    Attributes:
        version: of the registered model.
        step: the bank's step in its workspace.
        commit: that was checked out.
        expected: digest of the registered bank.
        found: digest of the bank that was made now.
        differing: files of the bank that differ, or are in one of the two only; empty when the banks are equal, or
            where the registry does not give its files out.
        stages: that ran, in order; nothing was taken from a cache.
        data_from: ``remote NAME``, or ``the workspace's cache``.
        folder: where everything is; ``None`` when it was removed again.
    """

    version: str
    step: str
    commit: str
    expected: str
    found: str
    differing: tuple[str, ...]
    stages: tuple[str, ...]
    data_from: str
    folder: str | None

    @property
    def is_equal(self) -> bool:
        """The two banks are the same, byte for byte."""
        return self.expected == self.found

    def values(self) -> dict[str, Any]:
        """The same as JSON values."""
        lists = {"differing": list(self.differing), "stages": list(self.stages)}
        return {**vars(self), **lists, "is_equal": self.is_equal}


def reproduce(
    root: Path,
    version: str,
    *,
    into: Path | None = None,
    is_any_code: bool = False,
    on_stage: Started = lambda _: None,
    on_progress: Progress = silent,
) -> Reproduction:
    """Check the record of a version out into a fresh folder, pull its data, run its stages, compare the banks.

    Only raw data is pulled: no module, embedding or bank is there before the stages run, and ``dvc repro --force`` runs
    every stage of the bank, neither skipping one nor asking the run cache. The workspace is not written to.

    Args:
        root: the workspace.
        version: a number, or an alias such as ``@champion``.
        into: a folder that is empty or not there; kept. Left out, one below ``.samcl``, kept only if the banks differ.
        is_any_code: run the installed code although the version was made by other code.
        on_stage: told each stage when it begins.
        on_progress: told how far the running stage is.

    Raises:
        UsageError: there is no such version, or ``into`` is not empty.
        SamclError: the record is not complete (no clean commit, other code), data cannot be had, or a stage failed.
        RegistryUnavailable: MLflow cannot be reached.
    """
    with open_tracker(root) as tracker:
        found = read_version(tracker, version)
    step = found.domains[-1] if found.domains else BASE
    commit = _checked_commit(root, found, step)
    if not is_any_code:
        _check_code(root, found, commit)
    with _folder(root, found.version, into) as top:
        fresh = _checkout(root, commit, top)
        if is_any_code:
            write_code(fresh)
        data_from = _pull(root, fresh, found)
        stages = _repro(root, fresh, found, step, on_stage, on_progress)
        digest, differing = _compared(root, fresh, found, step)
        keeps = into is not None or digest != found.digest
        result = Reproduction(
            version=found.version,
            step=step,
            commit=commit,
            expected=found.digest,
            found=digest,
            differing=differing,
            stages=stages,
            data_from=data_from,
            folder=str(fresh) if keeps else None,
        )
        if not keeps:
            shutil.rmtree(top)
    return result


def _checked_commit(root: Path, found: BankVersion, step: str) -> str:
    commit = found.tags.get("git_commit", NONE)
    if found.tags.get("git_dirty") != "false" or commit == NONE:
        register = f"samcl register {step}"
        changed = changed_files(root) if git(root, "rev-parse", "HEAD").returncode == 0 else ["."]
        hint = f"git add --all . && git commit --message 'The workspace of version {found.version}' && {register}"
        raise SamclError(
            f"version {found.version} was registered while its settings or data records were not committed: no commit "
            f"makes it again (versioning.commit in params.yaml lets flows commit)",
            hint=hint if changed else register,
        )
    if git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
        raise SamclError(f"the repository of {root} does not have commit {commit}", hint="git fetch --all")
    return commit


def _check_code(root: Path, found: BankVersion, commit: str) -> None:
    try:
        recorded = YAML(typ="safe", pure=True).load(file_at(root, commit, CODE_FILE) or b"") or {}
    except YAMLError as exc:
        raise SamclError(f"{CODE_FILE} of commit {commit[:12]} cannot be read: {exc}") from exc
    installed = stage_digests()
    other = [stage for stage in _STAGES if recorded.get(stage) != installed[stage]]
    if other:
        raise SamclError(
            f"version {found.version} was made by samcl {found.tags.get('samcl_version')} with other code for "
            f"{', '.join(other)} than is installed",
            hint=f"install that code, or: samcl reproduce {found.version} --any-code",
        )


@contextmanager
def _folder(root: Path, version: str, into: Path | None) -> Iterator[Path]:
    """The fresh folder; one of our own is removed when anything fails."""
    if into is not None:
        into = into.expanduser().resolve()
        if into.exists() and (not into.is_dir() or any(into.iterdir())):
            raise UsageError(f"{into} is not empty", hint="name a new folder")
        into.mkdir(parents=True, exist_ok=True)
        yield into
        return
    place = root / ".samcl" / "reproduce"
    place.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=f"version-{version}-", dir=place))
    try:
        yield own
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def _checkout(root: Path, commit: str, top: Path) -> Path:
    """A clone at ``commit`` in ``top``; returns the workspace in it. The workspace's own repository is only read."""
    place = git(root, "rev-parse", "--show-toplevel", "--show-prefix").stdout.split("\n")
    quietly = ("-c", f"core.hooksPath={os.devnull}", "-c", "advice.detachedHead=false")
    for command in (
        (*quietly, "clone", "--quiet", "--no-checkout", "--", place[0], str(top)),
        ("-C", str(top), *quietly, "checkout", "--quiet", "--detach", commit),
    ):
        done = git(root, *command)
        if done.returncode != 0:
            raise SamclError(f"commit {commit[:12]} cannot be checked out: {done.stderr.strip()}", hint="git fsck")
    fresh = top / place[1]
    for role in ("learn", "natural", "unseen"):
        (fresh / "embeddings" / role).mkdir(parents=True, exist_ok=True)
    return fresh


def _pull(root: Path, fresh: Path, found: BankVersion) -> str:
    params = load_params(fresh / "params.yaml")
    names = [*params.names("natural"), *params.names("unseen"), *found.domains]
    remote = _share_remotes(root, fresh)
    targets = [f"data/raw/{name}.dvc" for name in names if (fresh / "data" / "raw" / f"{name}.dvc").is_file()]
    if not targets:
        return "nowhere: there is none"
    try:
        if remote is not None:
            dvc.pull(fresh, targets, remote)
            return f"remote {remote}"
    except SamclError as exc:
        reason = exc
    else:
        reason = dvc.NoRemote("no DVC remote is set up")
    try:
        dvc.pull(fresh, targets, _CACHE)
    except SamclError as exc:
        raise SamclError(
            f"the data of version {found.version} is neither on the remote nor in the workspace's cache:\n"
            f"{reason.message}\n{exc.message}",
            hint="dvc push, where the data still is",
        ) from exc
    return "the workspace's cache"


def _share_remotes(root: Path, fresh: Path) -> str | None:
    """Make the workspace's remotes and cache known in the fresh folder; returns the remote to pull from.

    Relative addresses mean the workspace, and what is kept out of git (``.dvc/config.local``) is needed, too.
    """
    from dvc.config import Config

    ours = Config(str(root / ".dvc"))
    cache = ours.get("cache", {}).get("dir") or str(root / ".dvc" / "cache")
    with Config(str(fresh / ".dvc")).edit("local") as local:
        for name, entry in ours["remote"].items():
            local["remote"][name] = dict(entry)
        local["remote"][_CACHE] = {"url": str(Path(cache).resolve())}
    wanted = load_params(root / "params.yaml").versioning.remote or ours["core"].get("remote")
    return None if wanted is None else str(wanted)


def _repro(
    root: Path, fresh: Path, found: BankVersion, step: str, on_stage: Started, on_progress: Progress
) -> tuple[str, ...]:
    target = BASE if step == BASE else f"bank@{step}"
    log = root / ".samcl" / "logs" / f"reproduce-{found.version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "--no-commit", target]
    stages: list[str] = []
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            command,
            cwd=fresh,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                written.write(line)
                if match := _STARTED.match(line):
                    stages.append(match[1])
                    on_stage(match[1])
                elif match := _REPORT.match(line):
                    on_progress(match[1], int(match[2]), 0 if match[3] == "?" else int(match[3]))
            code = process.wait()
        finally:
            end_group(process.pid)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise SamclError(f"version {found.version} could not be made again:\n{tail}\n  whole output in {log}")
    return tuple(stages)


def _compared(root: Path, fresh: Path, found: BankVersion, step: str) -> tuple[str, tuple[str, ...]]:
    from samcl_core.bank import Bank

    folder = Places(fresh).bank(step)
    digest = Bank.load(folder).digest
    if digest == found.digest:
        return digest, ()
    try:
        registered = digest_files(load_registered(root, found.version))
    except SamclError:
        return digest, ()
    made = digest_files(folder)
    names = sorted(registered.keys() | made.keys())
    return digest, tuple(name for name in names if registered.get(name) != made.get(name))
