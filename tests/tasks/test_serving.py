"""A registered version is a model that answers as the segmenter does: in this process, from a folder, over HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from flows.cli.main import run
from samcl_core.backbones.nano import build_nano, load_nano, save_nano
from samcl_core.bank import Bank
from samcl_core.config import BackboneParams, Params, SelectorParams
from samcl_core.errors import CheckpointMismatch, CheckpointMissing
from samcl_core.inference import Prediction, Prompt, Segmenter
from samcl_core.masks import mask_from_rle
from samcl_core.serving import mask_from_png
from samcl_core.strategies import base_bank
from tasks.registry import model_name, register_bank
from tasks.serving.package import input_example, requirements, write_model
from tasks.tracking import open_tracker

pytestmark = pytest.mark.pipeline
REPOSITORY = Path(__file__).parents[2]
MODULES = ("Polyps", "Shadows", "plain", "auto")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, load_file: Callable[[Path], ModuleType]) -> tuple[Path, Params]:
    """Two registered banks; the newer one is champion."""
    root = tmp_path_factory.mktemp("serving") / "W"
    params: Params = load_file(REPOSITORY / "tests" / "filled_workspace.py").fill(root)
    register_bank(root, params, "Polyps")
    newest = register_bank(root, params, "Shadows")
    with open_tracker(root) as tracker:
        tracker.client.set_registered_model_alias(model_name(), "champion", newest.version)
    return root, params


@pytest.fixture(scope="module")
def stored(workspace: tuple[Path, Params]) -> Path:
    """The folder of the champion's model."""
    with open_tracker(workspace[0]) as tracker:
        source = tracker.client.get_model_version_by_alias(model_name(), "champion").source
    return Path(str(source).removeprefix("file://"))


@pytest.fixture(scope="module")
def model(stored: Path) -> Any:
    return load(stored)


def load(folder: Path) -> Any:
    import mlflow.pyfunc  # not above: the first import warns, and the package has done it quietly by now

    return mlflow.pyfunc.load_model(str(folder))


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (40 + row, 56, 3), dtype=np.uint8) for row in range(len(MODULES))]


def encoded(pixels: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def rows() -> list[dict[str, Any]]:
    return [
        {"image": encoded(pixels), "points": [[10, 20], [30.5, 4]], "labels": [1, 0], "module": module}
        for pixels, module in zip(images(), MODULES, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(workspace: tuple[Path, Params]) -> list[Prediction]:
    """What the segmenter predicts for ``rows()``."""
    segmenter = Segmenter.load(workspace[0] / "banks" / "Shadows", BackboneParams(name="tiny"))
    prompts = []
    for pixels in images():
        height, width = pixels.shape[:2]
        points = tuple((x * (1024 / width), y * (1024 / height)) for x, y in ((10, 20), (30.5, 4)))
        prompts.append(Prompt(points, (1, 0)))
    return segmenter.predict(images(), prompts, MODULES)


def assert_equal(answers: list[dict[str, Any]], expected: list[Prediction], digest: str) -> None:
    for answer, wanted in zip(answers, expected, strict=True):
        mask = answer["mask"]
        np.testing.assert_array_equal(
            mask_from_png(mask) if isinstance(mask, str) else mask_from_rle(mask), wanted.mask
        )
        found = tuple(answer[name] for name in ("score", "module", "confidence", "novelty"))
        assert found == (wanted.score, wanted.module, wanted.confidence, wanted.novelty)
        assert (answer["height"], answer["width"]) == wanted.mask.shape
        assert answer["bank"] == digest


class TestFolder:
    def test_nothing_is_pickled(self, stored: Path) -> None:
        files = sorted(path for path in stored.rglob("*") if path.is_file())
        assert {path.suffix for path in files} == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
        assert [path.name for path in files if not path.suffix] == ["MLmodel"]
        assert (stored / "bank_model.py").read_bytes() == (REPOSITORY / "tasks/serving/bank_model.py").read_bytes()

    def test_no_path_of_this_machine_is_in_it(self, stored: Path, workspace: tuple[Path, Params]) -> None:
        texts = [path for path in stored.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
        assert len(texts) > 8
        for path in texts:
            text = path.read_text(encoding="utf-8")
            for place in (str(workspace[0].parent), str(REPOSITORY), "samcl-register-", str(Path.home())):
                assert place not in text, path.name

    def test_requirements_are_what_is_installed(self, stored: Path) -> None:
        found = (stored / "requirements.txt").read_text().split()
        assert found == requirements()
        assert all("==" in line and "+" not in line for line in found)

    def test_the_input_example_is_answered(self, model: Any) -> None:
        table, params = input_example()
        answers = model.predict(table, params=params)
        assert list(answers["height"]) == [16, 16]
        assert answers["module"][1] == "plain"


class TestModel:
    @pytest.mark.parametrize("mask_format", ["png", "rle"])
    def test_it_answers_what_the_segmenter_predicts(
        self, model: Any, stored: Path, expected: list[Prediction], mask_format: str
    ) -> None:
        answers = model.predict(pd.DataFrame(rows()), params={"mask_format": mask_format}).to_dict("records")
        assert_equal(answers, expected, Bank.load(stored / "artifacts" / "bank").digest)

    def test_arrays_boxes_and_rows_of_several_kinds(self, model: Any) -> None:
        pixels = images()[0]
        mixed = [
            {"image_array": pixels.tolist(), "box": [3, 4, 50, 36]},
            {"image": encoded(pixels), "box": [3, 4, 50, 36], "module": "auto"},
            {"image": encoded(pixels), "points": [[5, 5]]},
        ]
        answers = model.predict(pd.DataFrame(mixed)).to_dict("records")
        assert answers[0] == answers[1]
        assert [(answer["height"], answer["width"]) for answer in answers] == [(40, 56)] * 3

    def test_mixed_domains_are_one_pass(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone = model.unwrap_python_model().service.segmenter.backbone
        sizes: list[int] = []
        suffix = backbone.suffix

        def count(prefix: Any, *rest: Any, **more: Any) -> Any:
            sizes.append(len(prefix))
            return suffix(prefix, *rest, **more)

        monkeypatch.setattr(backbone, "suffix", count)
        model.predict(pd.DataFrame(rows()))
        assert sizes == [len(MODULES)]

    def test_a_wrong_row_is_the_clients_mistake(self, model: Any) -> None:
        asked = rows()
        asked[1]["points"] = [[10, 20], [56, 4]]
        with pytest.raises(MlflowException, match=r"row 1: point \(56, 4\) is outside of the image of 56 x") as caught:
            model.predict(pd.DataFrame(asked))
        assert caught.value.get_http_status_code() == 400

    def test_another_failure_is_the_servers(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("no memory left")

        monkeypatch.setattr(model.unwrap_python_model().service.segmenter, "predict", fail)
        with pytest.raises(MlflowException, match="OutOfMemoryError: no memory left") as caught:
            model.predict(pd.DataFrame(rows()))
        assert caught.value.get_http_status_code() == 500


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bank, Params]:
    """A bank without modules for ``sam_nano`` with weights of one's own."""
    root = tmp_path_factory.mktemp("nano")
    network = build_nano()
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.02, generator=torch.Generator().manual_seed(value.numel()))
    sha256 = save_nano(network, root / "mine.safetensors")
    width = load_nano(root / "mine.safetensors").site.dim
    natural = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    bank = base_bank("sam_nano", sha256, {"Scenes": natural}, SelectorParams(kind="gaussian"), 0)
    bank.save(root / "bank")
    backbone = {"name": "sam_nano", "checkpoint": "mine.safetensors", "sha256": sha256}
    return root, bank, Params.model_validate({"version": 1, "backbone": backbone})


class TestBackbone:
    """``sam_nano`` with weights of one's own, in the model or beside it."""

    def test_the_weights_travel_along(
        self, nano: tuple[Path, Bank, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, bank, params = nano
        write_model(tmp_path / "model", root / "bank", bank, params, root=root, bundle=None)
        assert sorted(path.name for path in (tmp_path / "model/artifacts/backbone").iterdir()) == [
            "mine.json",
            "mine.safetensors",
        ]
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path / "empty"))
        monkeypatch.setenv("SAMCL_DEVICE", "cpu")
        (answer,) = load(tmp_path / "model").predict(pd.DataFrame(rows()[3:])).to_dict("records")
        assert (answer["module"], answer["bank"]) == ("plain", bank.digest)

    def test_or_are_looked_for_where_it_is_served(
        self, nano: tuple[Path, Bank, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, bank, params = nano
        write_model(tmp_path / "model", root / "bank", bank, params, root=root, bundle=False)
        assert not (tmp_path / "model/artifacts/backbone").exists()
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path / "empty"))
        with pytest.raises(CheckpointMissing, match=r"weights of sam_nano .* are not at .*empty/mine\.safetensors"):
            load(tmp_path / "model")
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(root))
        load(tmp_path / "model")

    def test_other_weights_do_not_travel(self, nano: tuple[Path, Bank, Params], tmp_path: Path) -> None:
        root, bank, params = nano
        (tmp_path / "mine.safetensors").write_bytes(b"others")
        with pytest.raises(
            CheckpointMismatch, match=f"the bank was made for sam_nano with sha256 {bank.backbone_sha256}"
        ):
            write_model(tmp_path / "model", root / "bank", bank, params, root=tmp_path, bundle=True)


class TestCommandLine:
    def call(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            run([str(argument) for argument in arguments])
        return int(caught.value.code or 0), capsys.readouterr().err

    def test_what_is_not_registered_is_not_served(
        self, workspace: tuple[Path, Params], capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, text = self.call(capsys, "-C", workspace[0], "serve", "--version", 9)
        assert (code, f"{model_name()} has no version 9" in text) == (2, True)
        code, text = self.call(capsys, "-C", workspace[0], "serve", "--alias", "best")
        assert (code, "has no version or alias '@best', found @candidate = 2, @champion = 2" in text) == (2, True)

    def test_a_version_that_exists_stays_as_it_is(
        self, workspace: tuple[Path, Params], capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, text = self.call(capsys, "-C", workspace[0], "register", "--bundle-backbone")
        assert (code, "version 2 holds this bank already and stays as it is" in text) == (0, True)


@contextmanager
def served(root: Path, log: Path) -> Iterator[str]:
    """``samcl serve`` on a free port; its whole process group is gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "-C", str(root), "serve", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, cwd=log.parent, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        limit = time.monotonic() + 240
        while not _is_up(address):
            assert process.poll() is None and time.monotonic() < limit, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(address: str, content: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


@pytest.mark.slow
def test_the_champion_answers_over_http(
    workspace: tuple[Path, Params], stored: Path, expected: list[Prediction], tmp_path: Path
) -> None:
    root, _ = workspace
    digest = Bank.load(stored / "artifacts" / "bank").digest
    with served(root, tmp_path / "log") as address:
        for key in ("dataframe_records", "inputs"):
            status, answer = post(address, {key: rows()})
            assert status == 200, answer
            assert_equal(answer["predictions"], expected, digest)
        status, answer = post(address, {"dataframe_records": rows(), "params": {"mask_format": "rle", "batch_size": 4}})
        assert status == 200
        assert_equal(answer["predictions"], expected, digest)
        wrong = rows()
        wrong[2]["module"] = "Rail"
        status, answer = post(address, {"dataframe_records": wrong})
        assert status == 400
        assert "row 2: module is 'Rail', expected one of ['auto', 'plain', 'Polyps', 'Shadows']" in answer["message"]
        status, answer = post(address, {"dataframe_records": [{"image": encoded(images()[0])}]})
        assert (status, "row 0: no prompt" in answer["message"]) == (400, True)
        assert _is_up(address)
    assert f"{model_name()} version 2 (@champion), bank {digest[:12]}" in (tmp_path / "log").read_text()
