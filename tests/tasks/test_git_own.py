"""The pipeline's files in git: committed by themselves, with nothing of the user's, and known when they are missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from samcl_core.config import parse_params
from samcl_core.errors import SamclError
from tasks.git import RECORD, changed_files, commit_own, file_at, is_committing, unknown_files

pytestmark = pytest.mark.pipeline


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_yaml", ".yaml").replace("_lock", ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(params=["", "models/segment"], ids=["whole", "sub-folder"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A workspace in a repository of the user's, which is one commit old."""
    top = tmp_path / "repository"
    root = top / str(request.param)
    root.mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    (top / "thesis.tex").write_text("chapter 1\n")
    (root / "notes.txt").write_text("mine\n")
    write(root, params_yaml="seed: 0\n", dvc_yaml="stages: {}\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "theirs")
    return root


def pipeline_writes(root: Path) -> None:
    """What an arrival leaves."""
    write(root, params_yaml="seed: 1\n", dvc_lock="schema: '2.0'\n")
    for name in ("data/raw/Polyp ä.dvc", "metrics/summary.json", "metrics/train/Polyp.json", "modules/.gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_only_the_pipelines_files_are_committed(root: Path) -> None:
    top = Path(git(root, "rev-parse", "--show-toplevel"))
    prefix = "" if root == top else "models/segment/"
    (top / "thesis.tex").write_text("chapter 1\nchapter 2, staged\n")
    (root / "figure.svg").write_text("staged and new")
    git(top, "add", "thesis.tex", f"{prefix}figure.svg")
    (top / "thesis.tex").write_text("chapter 1\nchapter 2, staged\nchapter 3, not staged\n")
    (root / "notes.txt").write_text("changed, not staged\n")
    (root / "scratch.txt").write_text("unknown to git")
    pipeline_writes(root)
    before = git(top, "diff", "--cached"), git(top, "diff", "--", "thesis.tex", f"{prefix}notes.txt")

    commit = commit_own(root, "Learn Polyp: data 123, bank 456\n\nbank: 456\n")

    assert commit == git(top, "rev-parse", "HEAD")
    assert git(top, "log", "-1", "--format=%s") == "Learn Polyp: data 123, bank 456"
    names = git(top, "-c", "core.quotePath=off", "show", "--name-only", "--format=", "HEAD").splitlines()
    expected = ["data/raw/Polyp ä.dvc", "dvc.lock", "metrics/summary.json", "metrics/train/Polyp.json"]
    assert sorted(names) == sorted(f"{prefix}{name}" for name in (*expected, "modules/.gitignore", "params.yaml"))
    assert (git(top, "diff", "--cached"), git(top, "diff", "--", "thesis.tex", f"{prefix}notes.txt")) == before
    assert git(top, "status", "--short", "--", f"{prefix}scratch.txt") == f"?? {prefix}scratch.txt"
    assert changed_files(root, RECORD) == []
    assert commit_own(root, "again") is None
    assert file_at(root, commit, "params.yaml") == b"seed: 1\n"
    assert file_at(root, commit, "params.json") is None


def test_what_is_gone_is_committed_too(root: Path) -> None:
    pipeline_writes(root)
    commit_own(root, "one")
    (root / "data/raw/Polyp ä.dvc").unlink()
    git(root, "rm", "-q", "--cached", "metrics/summary.json")
    (root / "metrics/summary.json").unlink()
    assert commit_own(root, "two")
    assert git(root, "show", "--format=", "--name-status", "-z").count("D\0") == 2
    assert changed_files(root, RECORD) == []


def test_a_refusal_leaves_the_index_as_it_was(root: Path) -> None:
    git(root, "checkout", "-qb", "side")
    (root / "notes.txt").write_text("side\n")
    git(root, "commit", "-qam", "side")
    git(root, "checkout", "-q", "main")
    (root / "notes.txt").write_text("main\n")
    git(root, "commit", "-qam", "main")
    assert subprocess.run(["git", "merge", "-q", "side"], cwd=root, capture_output=True, check=False).returncode == 1
    pipeline_writes(root)
    before, head = git(root, "status", "--short", "--untracked-files=all"), git(root, "rev-parse", "HEAD")
    with pytest.raises(SamclError, match=r"git commit failed in .*merge"):
        commit_own(root, "no")
    assert git(root, "status", "--short", "--untracked-files=all") == before
    assert git(root, "rev-parse", "HEAD") == head


def test_another_git_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline_writes(root)
    lock = Path(git(root, "rev-parse", "--absolute-git-dir")) / "index.lock"
    lock.touch()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            lock.unlink()

    monkeypatch.setattr("tasks.git.time.sleep", wait)
    assert commit_own(root, "after the other one")
    assert len(waits) == 2
    write(root, params_yaml="seed: 2\n")
    lock.touch()
    with pytest.raises(SamclError, match=r"index\.lock"):
        commit_own(root, "never")


def test_hooks_are_not_run(root: Path) -> None:
    hook = Path(git(root, "rev-parse", "--absolute-git-dir")) / "hooks" / "post-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch ran\n")
    hook.chmod(0o755)
    pipeline_writes(root)
    assert commit_own(root, "quietly")
    assert not list(root.rglob("ran"))


def test_what_git_ignores_counts_as_missing(root: Path) -> None:
    (root / ".gitignore").write_text("*.lock\n")
    pipeline_writes(root)
    commit_own(root, "as much as git takes")
    assert [Path(name).name for name in changed_files(root)] == ["dvc.lock"]
    assert unknown_files(root, ["params.yaml", "dvc.lock"]) == ["dvc.lock"]


def test_the_setting_decides_and_else_whose_repository_it_is(root: Path) -> None:
    open_, yes, no = (parse_params({"versioning": {"commit": value}}) for value in (None, True, False))
    assert (is_committing(root, open_), is_committing(root, yes), is_committing(root, no)) == (False, True, False)
    (root / ".samcl").mkdir()
    (root / ".samcl" / "own-git").touch()
    assert is_committing(root, open_) is (root / ".git").exists()


def test_without_a_repository(tmp_path: Path) -> None:
    with pytest.raises(SamclError, match="not a git repository"):
        commit_own(tmp_path, "nowhere")
