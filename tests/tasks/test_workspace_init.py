"""A workspace is made once, in any kind of folder, and never touches a history that is not its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from samcl_core.errors import ConfigError, UsageError
from samcl_core.stages import STAGES
from tasks.code import check_code
from tasks.workspace import Workspace, find_workspace, init_workspace, template

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["dvc.yaml", "params.yaml", "prefect.toml", "prefect.yaml"])
def test_templates_equal_the_files_of_the_repository(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == template(name)


def test_new_workspace_is_whole_and_committed(tmp_path: Path) -> None:
    workspace = init_workspace(tmp_path / "new" / "w")
    root = workspace.root
    assert git(root, "log", "--format=%s") == "Start the workspace"
    assert git(root, "status", "--short") == ""
    assert (root / "params.yaml").read_text() == template("params.yaml")
    for stage in STAGES:
        check_code(root, stage)
    config = (root / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "url = ../.dvcstore" in config
    assert str(tmp_path) not in config


def test_init_again_changes_nothing(tmp_path: Path) -> None:
    root = init_workspace(tmp_path, backbone="sam_vit_b", profile="reference", device="cpu").root
    params = (root / "params.yaml").read_text()
    before = git(root, "rev-parse", "HEAD")
    workspace = init_workspace(root)
    assert (root / "params.yaml").read_text() == params
    assert git(root, "rev-parse", "HEAD") == before
    assert git(root, "status", "--short") == ""
    assert (workspace.params().backbone.name, workspace.params().profile) == ("sam_vit_b", "reference")


def test_own_settings_and_ignore_lines_stay(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("notes.txt")
    (tmp_path / "params.yaml").write_text("# mine\nseed: 7\n")
    workspace = init_workspace(tmp_path)
    assert workspace.params().seed == 7
    assert (tmp_path / "params.yaml").read_text() == "# mine\nseed: 7\n"
    assert (tmp_path / ".gitignore").read_text().splitlines()[:2] == ["notes.txt", "/.samcl/"]


def test_another_repository_keeps_its_history(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "theirs")
    root = init_workspace(tmp_path / "sub").root
    assert not (root / ".git").exists()
    assert git(tmp_path, "log", "--format=%s") == "theirs"
    # DVC stages what `dvc init` wrote; nothing is committed.
    assert (root / ".dvc" / "config").is_file()


def test_folder_that_a_repository_ignores_gets_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("demo/\n")
    root = init_workspace(tmp_path / "demo").root
    assert (root / ".git").is_dir()
    assert git(root, "log", "--format=%s") == "Start the workspace"


def test_commit_without_a_configured_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    root = init_workspace(tmp_path / "w").root
    assert git(root, "log", "--format=%an") == "samcl"


def test_backbone_of_a_workspace_that_learns_cannot_change(tmp_path: Path) -> None:
    workspace = init_workspace(tmp_path)
    workspace.declare("A")
    with pytest.raises(UsageError, match="'sam_nano', not 'sam_vit_b'"):
        init_workspace(tmp_path, backbone="sam_vit_b")
    assert workspace.params().backbone.name == "sam_nano"


@pytest.mark.parametrize(
    ("option", "match"), [({"profile": "papers"}, "profile: .*papers"), ({"device": "tpu"}, "device: .*tpu")]
)
def test_wrong_options_write_no_settings(tmp_path: Path, option: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        init_workspace(tmp_path / "w", **option)
    assert not (tmp_path / "w" / "params.yaml").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("")
    with pytest.raises(UsageError, match=r"w cannot be a workspace"):
        init_workspace(tmp_path / "w")


def test_find_workspace_walks_up(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text(template(name))
    below = tmp_path / "data" / "raw"
    below.mkdir(parents=True)
    assert find_workspace(below) == tmp_path


def test_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no workspace at") as caught:
        find_workspace(tmp_path)
    assert caught.value.hint == "samcl init"


def test_refresh_repairs_code(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.refresh_code()
    assert not workspace.refresh_code()
    text = (tmp_path / "code.yaml").read_text()
    (tmp_path / "code.yaml").write_text(text.replace("train: ", "train: 0"))
    with pytest.raises(ConfigError, match="train is 0") as caught:
        check_code(tmp_path, "train")
    assert caught.value.hint == "samcl init --refresh"
    check_code(tmp_path, "ingest")
    assert workspace.refresh_code()
    check_code(tmp_path, "train")
