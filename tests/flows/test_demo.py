"""``samcl demo``: the whole product on drawn data, and what its workspace can do afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli.main import run
from flows.demo import DOMAINS, DemoOptions, draw_sources, run_demo
from samcl_core.errors import UsageError
from samcl_core.files import digest_files
from tasks import dvc
from tasks.server import Server

pytestmark = pytest.mark.pipeline

LEARNT = [name for name, (_, role) in DOMAINS.items() if role == "learn"]


@pytest.fixture
def samcl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a command that must succeed; returns stdout, stderr."""

    def call(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not caught.value.code, err
        return out, err

    return call


def test_the_drawings_are_the_same_every_time(tmp_path: Path) -> None:
    options = DemoOptions(num_train=2, num_test=1)
    first, second = draw_sources(tmp_path / "a", options), draw_sources(tmp_path / "b", options)
    assert list(first) == list(DOMAINS)
    assert digest_files(tmp_path / "a") == digest_files(tmp_path / "b")
    assert len(digest_files(second["Polyps"])) == 6


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UsageError, match="is not empty and no workspace"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_and_what_can_be_done_with_it(
    tmp_path: Path, server: Server, samcl: Callable[..., tuple[str, str]]
) -> None:
    root = tmp_path / "demo"
    out, err = samcl("demo", root, "--train", 4, "--test", 2, "--epochs", 1)
    for name in LEARNT:
        assert re.search(rf"^train@{name} +ran ", err, re.MULTILINE)
        assert f"pictures/{name}/{name}.png" in out
    assert "R matrix, iou" in out
    assert "registry: samcl-bank version 3, candidate (new)" in out
    assert f"Prefect: {server.page}" in err

    modules = digest_files(root / "modules")
    _, err = samcl("-C", root, "stream")
    assert "everything was up to date" in err
    assert digest_files(root / "modules") == modules
    assert dvc.status(root) == {}

    assert "whole, digest" in samcl("-C", root, "bank", "verify")[0]
    evaluated = json.loads(samcl("-C", root, "evaluate", "--json")[0])
    assert evaluated["order"] == LEARNT
    assert {stage["outcome"] for stage in evaluated["stages"].values()} == {"skipped"}
    assert {row["step"] for row in evaluated["r_matrix"]} == {0, 1, 2, 3}
    registered = json.loads(samcl("-C", root, "register", "--json")[0])
    assert (registered["version"], registered["created"]) == ("3", False)

    image = next((root / "data" / "Polyps" / "test" / "images").iterdir())
    mask = tmp_path / "mask.png"
    answer = json.loads(samcl("-C", root, "predict", image, "--point", "64,64", "--out", mask, "--json")[0])
    assert answer["module"] in {"plain", *LEARNT}
    assert mask.is_file()

    more = draw_sources(tmp_path / "more", DemoOptions(num_train=4, num_test=2, seed=9))["Polyps"]
    arrived = json.loads(samcl("-C", root, "arrive", more, "--domain", "More", "--json")[0])
    assert arrived["registered"]["version"] == "4"
    earlier = {stage: how["outcome"] for stage, how in arrived["stages"].items() if not stage.endswith("@More")}
    assert {outcome for stage, outcome in earlier.items() if stage != "report"} == {"skipped"}
    after = digest_files(root / "modules")
    assert {path: after[path] for path in modules} == modules
