"""Four processes register four banks at once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from samcl_core.bank import Bank
from samcl_core.config import load_params
from samcl_core.files import digest_files
from tasks.registry import CANDIDATE, all_versions, load_registered, read_version
from tasks.tracking import open_tracker

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

NAMES = ("Polyps", "Shadows", "Cracks", "Rails")
COMMAND = """
import pathlib, sys, time
from samcl_core.config import load_params
from tasks.registry import register_bank
root, step = pathlib.Path(sys.argv[1]), sys.argv[2]
import mlflow
(root / f"ready-{step}").touch()
while not (root / "go").exists():
    time.sleep(0.01)
found = register_bank(root, load_params(root / "params.yaml"), step)
print(found.version, found.created)
"""


def case() -> ModuleType:
    path = Path(__file__).parents[1] / "filled_workspace.py"
    spec = importlib.util.spec_from_file_location("filled_with_four", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    natural = module.NATURAL
    rows = {
        name: [(0, name, 0.2), (step - 1, name, 0.2), *((step, other, 0.9) for other in (*NAMES[:step], natural))]
        for step, name in enumerate(NAMES, 1)
    }
    rows[NAMES[0]].pop(1)
    domains = "".join(f"  {name}: {{role: learn}}\n" for name in NAMES)
    modules = "".join(f"  {name}: {{}}\n" for name in NAMES)
    before = ("base", *NAMES)
    steps = "".join(f"  {name}: {{previous: {before[step]}}}\n" for step, name in enumerate(NAMES))
    four = {
        "LEARNT": NAMES,
        "DIGESTS": {name: f"{number:064x}" for number, name in enumerate((*NAMES, natural), 1)},
        "SCORES": {"base": [(0, natural, 0.7)], **rows},
        "PARAMS": (
            "version: 1\nbackbone: {name: tiny}\nselector: {kind: gaussian}\n"
            f"domains:\n  {natural}: {{role: natural}}\n{domains}modules:\n{modules}stream:\n{steps}"
        ),
    }
    assert four.keys() <= vars(module).keys()
    vars(module).update(four)
    return module


def test_four_processes_register_at_once(tmp_path: Path) -> None:
    root = tmp_path / "W"
    case().fill(root)
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(root), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in NAMES
    ]
    while not all((root / f"ready-{name}").exists() for name in NAMES):
        assert all(command.poll() is None for command in commands)
    (root / "go").touch()
    told = [command.communicate(timeout=300) for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0, 0], told

    assert load_params(root / "params.yaml").steps() == NAMES
    answers = [out.split()[-2:] for out, _ in told]
    assert sorted(answers) == [[str(number), "True"] for number in (1, 2, 3, 4)]
    with open_tracker(root) as tracker:
        found = {bank.version: bank for bank in all_versions(tracker)}
        candidate = read_version(tracker, f"@{CANDIDATE}")
    assert sorted(found) == ["1", "2", "3", "4"]
    for name, (version, _) in zip(NAMES, answers, strict=True):
        folder = root / "banks" / name
        assert found[version].digest == Bank.load(folder).digest
        assert found[version].domains[-1] == name
        assert digest_files(load_registered(root, version)) == digest_files(folder)
    assert candidate.version in found
