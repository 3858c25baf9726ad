"""Two processes on the CPU (gloo) train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from samcl_core.errors import UsageError
from samcl_core.tensors import load_tensors
from samcl_core.training import distributed
from samcl_core.training.distributed import RENDEZVOUS, add_up, device_of, gathered, joined

HERE = Path(__file__).parent
WAYS = ("plain", "accumulate", "cosam", "val")


def start(what: str, folder: Path) -> list[subprocess.Popen[str]]:
    """The program in two processes."""
    common = {RENDEZVOUS: (folder / f"{what}-meeting").as_uri(), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "processes_case.py"), what, str(folder)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and what was said."""
    try:
        said = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def program(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(HERE / "processes_case.py")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    codes, said = ended(start("all", folder))
    assert codes == [0, 0], said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_does(
    together: Path, program: ModuleType, case: ModuleType, tmp_path: Path, way: str
) -> None:
    alone = program.trained(case, tmp_path, way)
    (first, curve), (second, _) = (load_tensors(together / f"{way}-{rank}") for rank in range(2))
    for entry, expected in zip(curve, alone["curve"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-5)
    for name, tensor in alone["tensors"].items():
        assert torch.equal(first[name], second[name]), "both processes hold the same bytes"
        # Adam moves a weight by its rate whatever the size of the gradient: the rounding of tiny ones shows a little.
        assert float((first[name] - tensor).abs().max()) <= 0.02 * program.OPTIONS["lr"]


@pytest.mark.slow
def test_the_processes_share_the_work_on_the_cache(together: Path, program: ModuleType) -> None:
    files = list((together / "cache").rglob("*.safetensors"))
    assert len(files) == program.NUM_SAMPLES


@pytest.mark.slow
def test_one_that_fails_ends_the_other(tmp_path: Path) -> None:
    codes, said = ended(start("broken", tmp_path))
    assert codes == [1, 1]
    assert "scratched.png cannot be read" in said[1]
    assert "ProcessLost" in said[0] and "process 1 of 2 cannot go on" in said[0]


def test_one_process_is_a_group_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RENDEZVOUS, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with joined("cuda:3") as device:
        assert device == "cuda:3"
        assert (distributed.rank(), distributed.num_processes(), distributed.is_first()) == (0, 1, True)
        assert gathered("x") == ["x"]
        vector: Any = torch.ones(2)
        assert add_up(vector) is vector and vector.tolist() == [1, 1]


def test_each_process_gets_its_gpu() -> None:
    assert [device_of("auto", local, 2) for local in range(2)] == ["cuda:0", "cuda:1"]
    assert device_of("cuda", 0, 1) == "cuda:0"
    assert device_of("auto", 1, 0) == device_of("cpu", 1, 8) == "cpu"
    with pytest.raises(UsageError, match="process 3 of this machine has no GPU of its own: 2 visible"):
        device_of("auto", 2, 2)
    with pytest.raises(UsageError, match="'cuda:1' with several processes"):
        device_of("cuda:1", 0, 2)
