"""What an arrival leaves in git and on the DVC remote; a remote that is broken damages nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from samcl_core.files import digest_files
from tasks import dvc
from tasks.steps import watching
from tasks.versioning import commit_rest, push_data
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("server")]


class Told:
    """A watcher that writes outcomes down."""

    def __init__(self) -> None:
        self.over: list[tuple[str, str]] = []

    def started(self, stage: str) -> None: ...

    def progress(self, stage: str, what: str, done: int, total: int) -> None: ...

    def ended(self, stage: str, outcome: str) -> None:
        self.over.append((stage, outcome))


@flow
def kept(root: Path, domain: str) -> dict[str, Any]:
    told = Told()
    with watching(told):
        return {"warnings": [*commit_rest(root, domain, None), *push_data(root, domain)], "told": told.over}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.png").write_bytes(b"1")
    workspace = init_workspace(tmp_path / "w")
    dvc.add_raw(workspace.root, source, "A")
    workspace.declare("A", "natural")
    return workspace


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def test_a_broken_remote_is_a_warning_until_it_works_again(workspace: Workspace) -> None:
    root = workspace.root
    config, block = root / ".dvc" / "config", root / ".samcl" / "block"
    config.write_text(config.read_text().replace("../.dvcstore", "../.samcl/block/store"))
    block.write_text("a file where the remote's folder should be")
    before = digest_files(root / "data"), (root / "params.yaml").read_text()
    (warning,) = (first := kept(root, "A"))["warnings"]
    assert first["told"] == [("push@A", "failed")]
    assert warning.startswith("A is not on the DVC remote: dvc push failed")
    assert "next: dvc push; the next arrival tries again" in warning
    assert (digest_files(root / "data"), (root / "params.yaml").read_text()) == before
    # What does not depend on the remote was done all the same.
    assert git(root, "log", "-1", "--format=%s") == f"Take A in: data {dvc.raw_digests(root)['A'][:12]}"
    assert git(root, "status", "--short") == ""

    block.unlink()
    assert kept(root, "A") == {"warnings": [], "told": [("push@A", "ran")]}
    assert any((block / "store").rglob("*.dir"))
    assert kept(root, "A") == {"warnings": [], "told": []}


def test_no_remote_is_no_problem_and_the_settings_decide(workspace: Workspace) -> None:
    root = workspace.root
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    assert kept(root, "A") == {"warnings": [], "told": [("push@A", "skipped")]}
    params = root / "params.yaml"
    params.write_text(
        params.read_text().replace("  push: true", "  push: false").replace("  commit:  ", "  commit: false")
    )
    (root / ".samcl" / "pushed").unlink()
    head = git(root, "rev-parse", "HEAD")
    assert kept(root, "A") == {"warnings": [], "told": []}
    assert git(root, "rev-parse", "HEAD") == head
    assert not workspace.params().versioning.push
    assert workspace.params().versioning.commit is False
