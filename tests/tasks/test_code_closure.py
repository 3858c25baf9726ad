"""A stage is stale exactly when code that it can import has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import samcl_core
from samcl_core.errors import ConfigError, SamclError
from samcl_core.stages import STAGES
from tasks.code import check_code, stage_closure, stage_digest, stage_digests, write_code
from tasks.workspace import template

pytestmark = pytest.mark.pipeline
PACKAGE = Path(samcl_core.__file__).parent


def copied(folder: Path) -> Path:
    copy = folder / "samcl_core"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    return copy


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return copied(tmp_path)


@pytest.fixture(scope="module")
def closures() -> dict[str, set[str]]:
    """Each stage's files, relative to the package."""
    return {stage: {file.relative_to(PACKAGE).as_posix() for file in stage_closure(stage)} for stage in STAGES}


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a copy without weights."""
    return stage_digests(copied(tmp_path_factory.mktemp("code")))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    "name",
    ["errors.py", "stages/train.py", "stages/report.py", "training/losses.py", "bank/bank.py", "evaluation/rmatrix.py"],
)
def test_a_changed_file_makes_its_own_stages_stale(
    package: Path, closures: dict[str, set[str]], digests: dict[str, str], name: str
) -> None:
    with (package / name).open("a") as stream:
        stream.write("\nSOMETHING_NEW = 1\n")
    holders = {stage for stage in STAGES if name in closures[stage]}
    assert changed(digests, stage_digests(package)) == holders
    assert holders


def test_losses_belong_to_training_and_not_to_reading_data(closures: dict[str, set[str]]) -> None:
    holders = {stage for stage in STAGES if "training/losses.py" in closures[stage]}
    assert "train" in holders
    assert not holders & {"ingest", "points", "report"}


def test_line_ends_do_not_matter(package: Path, digests: dict[str, str]) -> None:
    file = package / "errors.py"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert stage_digests(package) == digests


def test_one_stage_has_the_digest_that_it_has_among_all(package: Path, digests: dict[str, str]) -> None:
    assert stage_digest("report", package) == digests["report"]


def test_every_stage_of_the_graph_has_its_digest(tmp_path: Path) -> None:
    stages = YAML(typ="safe").load(template("dvc.yaml"))["stages"]
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        params = (stage.get("do") or stage)["params"]
        assert [entry["code.yaml"] for entry in params if isinstance(entry, dict)] == [[name]]
    write_code(tmp_path)
    assert sorted(YAML(typ="safe").load((tmp_path / "code.yaml").read_text())) == sorted(STAGES)


def test_the_closure_covers_what_each_stage_imports(closures: dict[str, set[str]]) -> None:
    script = """
import importlib, json, sys
files = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "samcl_core"]:
        del sys.modules[name]
    importlib.import_module(f"samcl_core.stages.{stage}")
    mine = [module for name, module in sys.modules.items() if name.split(".")[0] == "samcl_core"]
    files[stage] = [module.__file__ for module in mine]
print(json.dumps(files))
"""
    done = subprocess.run([sys.executable, "-c", script, *STAGES], capture_output=True, text=True, check=True)
    for stage, files in json.loads(done.stdout).items():
        imported = {Path(file).relative_to(PACKAGE).as_posix() for file in files}
        assert len(imported) > 5
        missing = imported - closures[stage]
        assert not missing, (stage, sorted(missing))


def tiny(tmp_path: Path, **files: str) -> Path:
    root = tmp_path / "samcl_core"
    for name, text in {"__init__": "", "stages/__init__": "", **files}.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in stage_closure("train", root)} - {
        "__init__.py",
        "stages/__init__.py",
        "stages/train.py",
    }


@pytest.mark.parametrize(
    "line",
    [
        "import samcl_core.a",
        "import samcl_core.a as b",
        "from samcl_core import a",
        "from samcl_core.a import x",
        "from .. import a",
        "from ..a import x",
        "def f():\n    from samcl_core.a import x",
        "NAMES = {'x': 'samcl_core.a'}",
        "from samcl_core.p import nothing",
    ],
)
def test_every_way_of_importing_is_followed(tmp_path: Path, line: str) -> None:
    files = {"stages/train": line, "a": "", "b": "", "p/__init__": "from samcl_core import a"}
    assert "a.py" in names(tiny(tmp_path, **files))
    assert "b.py" not in names(tmp_path / "samcl_core")


def test_imports_for_type_checkers_do_not_count(tmp_path: Path) -> None:
    lines = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import samcl_core.a\nelse:\n    import samcl_core.b\n"
    )
    assert names(tiny(tmp_path, **{"stages/train": lines, "a": "", "b": ""})) == {"b.py"}


def test_data_files_belong_to_their_package(tmp_path: Path) -> None:
    root = tiny(tmp_path, **{"stages/train": "import samcl_core.p.m", "p/__init__": "", "p/m": "", "q/__init__": ""})
    (root / "p" / "weights.safetensors").write_bytes(b"1")
    (root / "q" / "weights.safetensors").write_bytes(b"1")
    assert names(root) == {"p/__init__.py", "p/m.py", "p/weights.safetensors"}


def test_cycles_end(tmp_path: Path) -> None:
    files = {"stages/train": "import samcl_core.a", "a": "import samcl_core.b", "b": "import samcl_core.a"}
    assert names(tiny(tmp_path, **files)) == {"a.py", "b.py"}


def test_a_stage_without_module(tmp_path: Path) -> None:
    with pytest.raises(SamclError, match=r"'train' has no module samcl_core\.stages\.train"):
        stage_closure("train", tiny(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"), [(None, "does not exist"), ("a: [", "cannot be read"), ("x", "train is None")]
)
def test_a_file_that_says_nothing(tmp_path: Path, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / "code.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        check_code(tmp_path, "train")
