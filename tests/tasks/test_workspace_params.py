"""Edits of params.yaml: comments stay, wrong values never get in, nothing is lost between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samcl_core.errors import ConfigError, UsageError
from tasks.workspace import Workspace, template

pytestmark = pytest.mark.pipeline


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "params.yaml").write_text(template("params.yaml"))
    return Workspace(tmp_path)


def text_of(workspace: Workspace) -> str:
    return (workspace.root / "params.yaml").read_text()


def test_declare_writes_every_section_and_keeps_comments(workspace: Workspace) -> None:
    assert workspace.declare("Kvasir")
    assert workspace.declare("COCO", "natural", "folders", "Photographs: of things")
    params = workspace.params()
    assert params.names("learn") == ("Kvasir",)
    assert params.domains["COCO"].format == "folders"
    assert params.domains["COCO"].label == "Photographs: of things"
    assert tuple(params.modules) == ("Kvasir",)
    assert params.steps() == ()
    head = template("params.yaml").partition("domains:")[0]
    assert text_of(workspace).startswith(head)
    assert "# bank versions in order; each names the one before it" in text_of(workspace)


def test_declare_again_changes_nothing(workspace: Workspace) -> None:
    workspace.declare("Kvasir", format="folders", label="polyps")
    before = text_of(workspace)
    assert not workspace.declare("Kvasir")
    assert text_of(workspace) == before


def test_role_of_a_domain_stays(workspace: Workspace) -> None:
    workspace.declare("COCO", "natural")
    with pytest.raises(UsageError, match="'COCO' is declared with role 'natural', not 'learn'"):
        workspace.declare("COCO")


@pytest.mark.parametrize(
    ("name", "match"),
    [("../up", "'../up'"), ("plain", "'plain' is reserved"), ("", "domain name ''"), ("a b", "'a b'")],
)
def test_impossible_names(workspace: Workspace, name: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        workspace.declare(name)


def test_impossible_role(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="'teacher'"):
        workspace.declare("A", "teacher")


def test_names_that_differ_in_case_leave_the_file(workspace: Workspace) -> None:
    workspace.declare("Kvasir")
    before = text_of(workspace)
    with pytest.raises(ConfigError, match="differ only in case"):
        workspace.declare("kvasir")
    assert text_of(workspace) == before


def test_stream_is_a_chain(workspace: Workspace) -> None:
    for name in ("A", "B", "C"):
        workspace.declare(name)
    assert [workspace.append_to_stream(name) for name in ("A", "B", "C", "B")] == ["base", "A", "B", "A"]
    assert workspace.params().steps() == ("A", "B", "C")


def test_several_at_once_fit_the_selector_once(workspace: Workspace) -> None:
    for name in "ABCDE":
        workspace.declare(name)
    workspace.append_to_stream("A")
    assert workspace.append_to_stream("B", "C", "D") == "A"
    assert "B:\n    previous: A\n    fit: false\n" in text_of(workspace)
    assert "D:\n    previous: C\n" in text_of(workspace)
    assert workspace.params().fits() == (1, 4)
    # What is there stays as it is; one new one alone fits.
    before = text_of(workspace)
    assert workspace.append_to_stream("C", "B", "D") == "B"
    assert text_of(workspace) == before
    workspace.append_to_stream("B", "E", "E")
    assert workspace.params().fits() == (1, 4, 5)


def test_the_end_of_a_back_fill_hands_its_fit_on(workspace: Workspace) -> None:
    for name in "ABCD":
        workspace.declare(name)
    workspace.append_to_stream("A", "B", "C")
    workspace.append_to_stream("D")
    assert workspace.remove_domain("C") == ("D",)
    assert workspace.params().fits() == (2, 3)
    assert "fit: false" in text_of(workspace)
    assert workspace.remove_domain("B") == ("D",)
    assert workspace.params().fits() == (1, 2)
    workspace.remove_domain("A")
    assert workspace.params().fits() == (1,)


def test_a_stream_that_ends_without_a_fit(workspace: Workspace) -> None:
    workspace.declare("A")
    text = text_of(workspace).replace("stream: {}", "stream: {A: {previous: base, fit: false}}")
    (workspace.root / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"stream\.A\.fit is False, expected True: no later step"):
        workspace.params()


def test_stream_takes_learnt_domains_only(workspace: Workspace) -> None:
    workspace.declare("COCO", "natural")
    before = text_of(workspace)
    with pytest.raises(ConfigError, match=r"stream\.COCO is not under domains with role 'learn'"):
        workspace.append_to_stream("COCO")
    assert text_of(workspace) == before


def test_a_wrong_file_is_reported_and_left(workspace: Workspace) -> None:
    (workspace.root / "params.yaml").write_text("train: {epochs: 0}\nseed: x\n")
    with pytest.raises(ConfigError, match=r"(?s)train\.epochs.*seed|seed.*train\.epochs"):
        workspace.declare("A")
    assert text_of(workspace) == "train: {epochs: 0}\nseed: x\n"


def test_values_written_by_hand_survive(workspace: Workspace) -> None:
    text = template("params.yaml").replace("rank: 10", "rank: 4   # small").replace("seed: 0", "seed: 0x10")
    (workspace.root / "params.yaml").write_text(text)
    workspace.declare("A")
    assert "rank: 4   # small" in text_of(workspace)
    assert "seed: 0x10" in text_of(workspace)


def test_remove_relinks_the_steps_after_it(workspace: Workspace) -> None:
    for name in ("A", "B", "C"):
        workspace.declare(name)
        workspace.append_to_stream(name)
    assert workspace.remove_domain("A") == ("B", "C")
    params = workspace.params()
    assert params.stream["B"].previous == "base"
    assert params.stream["C"].previous == "B"
    assert "A" not in params.domains
    for name in ("B", "C"):
        workspace.remove_domain(name)
    assert text_of(workspace) == template("params.yaml")


def test_remove_what_is_not_there(workspace: Workspace) -> None:
    workspace.declare("A")
    with pytest.raises(UsageError, match=r"'B' is not in this workspace; declared are \['A'\]"):
        workspace.remove_domain("B")


def test_no_edit_is_lost_between_processes(workspace: Workspace) -> None:
    script = (
        "import sys, pathlib, tasks.workspace as w\n"
        "root, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "for number in range(first, first + 4): w.Workspace(root).declare(f'D{number}')"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, workspace.root, str(first)]) for first in (0, 4, 8)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert sorted(workspace.params().domains) == sorted(f"D{number}" for number in range(12))
