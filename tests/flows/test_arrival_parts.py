"""What the flows decide without a server: order, refusals before anything changes, what need not be asked of DVC."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from flows.arrival import Arrival, Progressing, check_arrivals
from flows.stream import StreamStopped, in_order
from samcl_core.errors import ConfigError, UsageError
from tasks.dvc import StageFailed, repro
from tasks.processes import clean_environment
from tasks.steps import artifact_key, require_workspace
from tasks.workspace import Workspace, template

pytestmark = pytest.mark.pipeline


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "w"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text(template(name))
    return Workspace(root)


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"1")
    return str(folder)


def test_natural_and_unseen_come_first_and_the_rest_stays_in_order() -> None:
    roles = ("learn", "unseen", "learn", "natural", "unseen")
    arrivals = [Arrival(name, role=role) for name, role in zip("CXANY", roles, strict=True)]
    assert [arrival.domain for arrival in in_order(arrivals)] == ["N", "X", "Y", "C", "A"]


def test_everything_is_looked_at_before_anything_changes(workspace: Workspace, source: str) -> None:
    before = (workspace.root / "params.yaml").read_text()
    wrong = {
        "comes twice": [Arrival("A", source), Arrival("A", source)],
        "does not exist": [Arrival("A", source), Arrival("B", source + "/nowhere")],
        "is reserved": [Arrival("A", source), Arrival("plain", source)],
        "raw/B does not exist": [Arrival("A", source), Arrival("B")],
    }
    for match, arrivals in wrong.items():
        with pytest.raises(UsageError, match=match):
            check_arrivals(workspace, arrivals)
    assert (workspace.root / "params.yaml").read_text() == before
    assert not (workspace.root / "data").exists()


def test_a_role_does_not_change(workspace: Workspace, source: str) -> None:
    workspace.declare("COCO", "natural")
    with pytest.raises(UsageError, match="declared with role 'natural', not 'learn'"):
        check_arrivals(workspace, [Arrival("COCO", source)])


def test_no_workspace_and_wrong_settings(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no workspace"):
        require_workspace(tmp_path)
    with pytest.raises(UsageError, match="has no DVC repository"):
        require_workspace(workspace.root)
    (workspace.root / ".dvc").mkdir()
    (workspace.root / "params.yaml").write_text("seed: -1\n")
    with pytest.raises(ConfigError, match=r"seed: .*found -1"):
        require_workspace(workspace.root)
    assert not (workspace.root / "code.yaml").exists()


@pytest.mark.parametrize(
    ("parts", "key"),
    [(("progress", "train@Kvasir"), "progress-train-kvasir"), (("pictures", "A_b-C"), "pictures-a-b-c")],
)
def test_artifact_keys(parts: tuple[str, ...], key: str) -> None:
    assert artifact_key(*parts) == key


def test_a_stopped_stream_says_what_is_kept() -> None:
    cause = StageFailed(
        "loss is nan", target="train@B", log=Path("b.log"), returncode=255, output="", exit_code=1, hint="lower lr"
    )
    error = StreamStopped("B", ["N", "A"], cause)
    assert "B: loss is nan" in error.message
    assert "the stream stopped here; done and kept: N, A" in error.message
    assert "stopped here; failed as well: C, D; nothing was done" in StreamStopped("B", [], cause, ["C", "D"]).message
    assert error.hint == "lower lr"
    again = pickle.loads(pickle.dumps(cause))
    assert (again.message, again.hint, again.log) == ("loss is nan", "lower lr", Path("b.log"))


def test_what_the_status_found_clean_needs_no_process(tmp_path: Path) -> None:
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, env=clean_environment(), check=True)
    stages = "".join(f"  {name}:\n    cmd: echo 1 > {name}\n    outs:\n    - {name}\n" for name in ("one", "two"))
    (tmp_path / "dvc.yaml").write_text(f"stages:\n{stages}")
    repro(tmp_path, "one")
    (tmp_path / ".samcl" / "logs" / "one.log").unlink()
    progress = Progressing.begun(Workspace(tmp_path))
    assert progress.stale is not None
    assert progress.is_clean("one")
    assert not progress.is_clean("two")
    assert progress.run("one") == "skipped"
    assert not (tmp_path / ".samcl" / "logs" / "one.log").exists()
    progress.settled |= {"base", "A", "B"}
    progress.touch("A")
    assert not progress.is_untouched
    assert not progress.is_clean("one")
    assert progress.settled == {"base", "B"}
    progress.touch()
    assert progress.settled == set()
