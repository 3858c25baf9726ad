"""Calls of git, and the pipeline's own files in it: does a commit hold them, and a commit of nothing else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from samcl_core.config import Params
from samcl_core.errors import SamclError, UsageError
from tasks.processes import clean_environment

__all__ = [
    "OWN_GIT",
    "RECIPE",
    "RECORD",
    "changed_files",
    "commit_own",
    "file_at",
    "git",
    "identity",
    "is_committing",
    "unknown_files",
]

OWN_GIT = ".samcl/own-git"
"""Marks a workspace whose repository was made by ``samcl init``."""

RECIPE = (
    "params.yaml",
    "dvc.yaml",
    "dvc.lock",
    "code.yaml",
    ".dvc/config",
    "data/raw/*.dvc",
    "data/raw/.gitkeep",
    "embeddings/*/.gitkeep",
)
"""What makes the banks again, with the data in DVC: a version whose commit lacks any of it cannot be reproduced."""

RECORD = (
    *RECIPE,
    "ledger.jsonl",
    "metrics/summary.json",
    "metrics/r_matrix.csv",
    "metrics/train/*.json",
    ".dvc/.gitignore",
    "data/*/.gitignore",
    "data/*/*/.gitignore",
    "embeddings/*/.gitignore",
    "modules/.gitignore",
    "banks/.gitignore",
    "metrics/.gitignore",
    "metrics/*/.gitignore",
    "pictures/.gitignore",
)
"""Everything that the pipeline writes for git; the flow commits these files and no others."""

_FALLBACK_IDENTITY = ("-c", "user.name=samcl", "-c", "user.email=samcl@localhost")
# A hook of the user's may ask, reformat or take an hour; a key may ask for its password.
_ALONE = ("-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgsign=false")
_VERBS = ("add", "commit", "ls-files", "rev-parse", "status")
_BUSY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder; what it answers is in the result, failures included.

    Raises:
        UsageError: git is not installed.
    """
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError as exc:
        raise UsageError("git is not installed", hint="install git, then run the same command again") from exc


def identity(folder: Path) -> tuple[str, ...]:
    """Options that name the author of a commit where git's settings do not."""
    has_identity = all(git(folder, "config", key).stdout.strip() for key in ("user.name", "user.email"))
    return () if has_identity else _FALLBACK_IDENTITY


def is_committing(root: Path, params: Params) -> bool:
    """Whether flows commit: as ``versioning.commit`` says; left open, in a repository that ``samcl init`` made."""
    if params.versioning.commit is not None:
        return params.versioning.commit
    return (root / OWN_GIT).is_file() and (root / ".git").exists()


def changed_files(root: Path, patterns: Sequence[str] = RECIPE) -> list[str]:
    """Files of the workspace that ``HEAD`` does not hold as they are, among those that fit the patterns.

    Files that git does not know count, ignored ones too: a clone would not have them.

    Returns:
        Paths relative to the top of the repository, sorted.

    Raises:
        SamclError: there is no repository, or git fails.
    """
    _, prefix = _place(root)
    there = {prefix + path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern)}
    known = set(_names(_asked(root, "ls-files", "-z", "--full-name", "--", *_specs(patterns))))
    return sorted({*_tracked_changes(root, patterns), *(there - known)})


def unknown_files(root: Path, names: Sequence[str]) -> list[str]:
    """Those of the workspace's files (relative paths) that git's index does not hold."""
    known = set(_names(_asked(root, "--literal-pathspecs", "ls-files", "-z", "--", *names)))
    return [name for name in names if name not in known]


def commit_own(root: Path, message: str) -> str | None:
    """Commit the pipeline's own files as they are on the disk, and nothing else.

    What the user has staged or changed elsewhere stays as it is, staged or not. Hooks are not run. Another git command
    in the same repository is waited for, some seconds.

    Returns:
        The new commit; ``None`` where ``HEAD`` holds everything already.

    Raises:
        SamclError: git refuses, for instance during a merge; the index is as it was.
    """
    for wait_s in (*_BUSY_WAITS_S, None):
        try:
            return _commit(root, message)
        except _Busy as exc:
            if wait_s is None:
                raise SamclError(exc.message, hint=exc.hint) from exc
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def file_at(root: Path, commit: str, name: str) -> bytes | None:
    """A file of the workspace as a commit holds it; ``None`` where it does not."""
    done = subprocess.run(
        ["git", "show", f"{commit}:./{name}"], cwd=root, env=clean_environment(), capture_output=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


class _Busy(SamclError):
    """Another git command holds the index."""


def _commit(root: Path, message: str) -> str | None:
    top, _ = _place(root)
    new = _names(_asked(root, "ls-files", "-z", "--full-name", "--others", "--exclude-standard", "--", *_specs(RECORD)))
    changed = sorted({*_tracked_changes(root, RECORD), *new})
    if not changed:
        return None
    literally = ("--literal-pathspecs",)
    if new:
        _asked(top, *literally, "add", "--", *new)
    try:
        options = ("--quiet", "--no-verify", "--only", "--message", message)
        _asked(top, *identity(top), *_ALONE, *literally, "commit", *options, "--", *changed)
    except SamclError:
        if new:
            git(top, *literally, "rm", "--quiet", "--cached", "--", *new)
        raise
    return _asked(root, "rev-parse", "HEAD").strip()


def _place(root: Path) -> tuple[Path, str]:
    """Top of the repository, and the workspace's path below it (empty, or ending in a slash)."""
    top, prefix = (_asked(root, "rev-parse", "--show-toplevel", "--show-prefix") + "\n").split("\n")[:2]
    return Path(top), prefix


def _tracked_changes(root: Path, patterns: Sequence[str]) -> list[str]:
    listed = _asked(
        root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--", *_specs(patterns)
    )
    return [entry[3:] for entry in _names(listed)]


def _specs(patterns: Sequence[str]) -> list[str]:
    return [f":(glob){pattern}" for pattern in patterns]


def _names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def _asked(folder: Path, *arguments: str) -> str:
    done = git(folder, *arguments)
    if done.returncode == 0:
        return done.stdout
    text = " ".join((done.stderr or done.stdout).split())[:400]
    what = next((word for word in arguments if word in _VERBS), arguments[0])
    kind = _Busy if ".lock'" in done.stderr and "File exists" in done.stderr else SamclError
    raise kind(f"git {what} failed in {folder}: {text}", hint="git status")
