"""Arriving data: whole or absent, the same twice is nothing, and nothing is changed before everything was looked at."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from samcl_core.errors import UsageError
from tasks import dvc
from tasks.workspace import Workspace, init_workspace

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_workspace(tmp_path_factory.mktemp("pattern")).root


@pytest.fixture
def root(pattern: Path, tmp_path: Path) -> Path:
    target = tmp_path / "w"
    subprocess.run(["cp", "-a", str(pattern), str(target)], check=True)
    return target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "train" / "images").mkdir(parents=True)
    (folder / "train" / "images" / "a b.png").write_bytes(b"1")
    (folder / "readme.txt").write_text("hello")
    return folder


def snapshot(root: Path) -> dict[str, bytes]:
    raw = root / "data" / "raw"
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}


def test_new_same_changed(root: Path, source: Path) -> None:
    assert dvc.add_raw(root, source, "A")
    assert (root / "data/raw/A/train/images/a b.png").read_bytes() == b"1"
    before = snapshot(root)
    stat = (root / "data/raw/A/readme.txt").stat()
    assert not dvc.add_raw(root, source, "A")
    assert snapshot(root) == before
    assert (root / "data/raw/A/readme.txt").stat().st_ino == stat.st_ino
    (source / "train/images/a b.png").write_bytes(b"2")
    (source / "readme.txt").unlink()
    assert dvc.add_raw(root, source, "A")
    assert (root / "data/raw/A/train/images/a b.png").read_bytes() == b"2"
    assert not (root / "data/raw/A/readme.txt").exists()
    assert "data/raw/A.dvc" not in dvc.status(root)
    dvc.push(root)
    assert any((root / ".dvcstore").rglob("*.dir"))


def test_a_source_that_is_in_place(root: Path) -> None:
    place = root / "data" / "raw" / "A"
    place.mkdir(parents=True)
    (place / "x").write_text("1")
    assert dvc.add_raw(root, place, "A")
    assert not dvc.add_raw(root, place, "A")
    (place / "x").write_text("2")
    assert dvc.add_raw(root, place, "A")


def test_foreign_repository_files_stay_out(root: Path, source: Path) -> None:
    for name in (".git/config", ".dvc/config", "train/.DS_Store", ".dvcignore"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    dvc.add_raw(root, source, "A")
    assert sorted(name for name in snapshot(root) if name.startswith("A/")) == [
        "A/readme.txt",
        "A/train/images/a b.png",
    ]


def test_links_inside_the_source_become_files(root: Path, source: Path) -> None:
    (source / "link.txt").symlink_to("readme.txt")
    (source / "folder").symlink_to("train")
    dvc.add_raw(root, source, "A")
    raw = root / "data/raw/A"
    assert not (raw / "link.txt").is_symlink()
    assert (raw / "link.txt").read_text() == "hello"
    assert (raw / "folder/images/a b.png").read_bytes() == b"1"
    assert not dvc.add_raw(root, source, "A")


def break_source(source: Path, how: str) -> Path:
    if how == "missing":
        return source / "nowhere"
    if how == "file":
        return source / "readme.txt"
    if how == "empty":
        (source / "void" / "deep").mkdir(parents=True)
        return source / "void"
    if how == "outside":
        (source / "link").symlink_to("/etc/hostname")
    if how == "nowhere":
        (source / "link").symlink_to("gone.txt")
    if how == "circle":
        (source / "train" / "again").symlink_to(source)
    if how == "around":
        (source / "train" / "again").symlink_to(source / "train")
    if how == "pipe":
        os.mkfifo(source / "pipe")
    return source


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("missing", "nowhere does not exist"),
        ("file", "readme.txt is a file, expected a folder"),
        ("empty", "void is empty"),
        ("outside", "leads out of the source, to /etc/hostname"),
        ("nowhere", "link leads nowhere"),
        ("circle", "leads out of the source"),
        ("around", "leads to a folder around it"),
        ("pipe", "pipe is neither a file nor a folder"),
    ],
)
def test_wrong_sources_change_nothing(root: Path, source: Path, how: str, match: str) -> None:
    dvc.add_raw(root, source, "A")
    before = snapshot(root)
    with pytest.raises(UsageError, match=match):
        dvc.add_raw(root, break_source(source, how), "A")
    assert snapshot(root) == before


def test_the_workspace_is_no_source(root: Path) -> None:
    for place in (root, root.parent, root / "data"):
        with pytest.raises(UsageError, match="holds the workspace itself"):
            dvc.add_raw(root, place, "A")


def test_a_name_that_leads_out(root: Path, source: Path) -> None:
    with pytest.raises(UsageError, match=r"\.\./\.\./x"):
        dvc.add_raw(root, source, "../../x")


def test_remove_takes_files_and_lock_entries(root: Path, source: Path) -> None:
    workspace = Workspace(root)
    workspace.declare("A")
    dvc.add_raw(root, source, "A")
    (root / "modules" / "A").mkdir(parents=True)
    (root / "modules" / ".gitignore").write_text("/A\n/B\n")
    lock = (
        "schema: '2.0'\nstages:\n  train@A:\n    cmd: x\n  train@B:\n    cmd: samcl step train B\n  base:\n    cmd: y\n"
    )
    (root / "dvc.lock").write_text(lock)
    assert workspace.remove_domain("A") == ()
    assert not (root / "data/raw/A").exists()
    assert not (root / "data/raw/A.dvc").exists()
    assert not (root / "modules/A").exists()
    assert (root / "modules/.gitignore").read_text() == "/B\n"
    text = (root / "dvc.lock").read_text()
    assert "train@A" not in text
    assert "train@B" in text
    assert "base" in text
    # DVC still has the data: it comes back without the source.
    assert any((root / ".dvc" / "cache").rglob("*.dir"))


def test_remove_takes_every_output_of_the_graph(root: Path) -> None:
    workspace = Workspace(root)
    workspace.declare("A")
    values = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"].values()
    outs = [out for stage in values for kind in ("outs", "metrics") for out in stage.get("do", {}).get(kind, [])]
    names = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    paths = [root / name.replace("${key}", "A").replace("${item.role}", "learn") for name in names]
    assert len(paths) >= 12
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    workspace.remove_domain("A")
    assert not [path for path in paths if path.exists()]


def test_remove_keeps_data_that_dvc_does_not_have(root: Path) -> None:
    workspace = Workspace(root)
    workspace.declare("A")
    place = root / "data" / "raw" / "A"
    place.mkdir()
    (place / "only.png").write_text("1")
    workspace.remove_domain("A")
    assert (place / "only.png").exists()


def test_outside_of_a_workspace(tmp_path: Path, source: Path) -> None:
    from samcl_core.errors import SamclError

    with pytest.raises(SamclError, match="not inside of a DVC repository") as caught:
        dvc.status(tmp_path)
    assert caught.value.hint == "samcl init"
