"""Runs, registered banks and their lineage, on a real MLflow database file."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from samcl_core.bank import Bank, verify_bank
from samcl_core.config import Params
from samcl_core.errors import BankError, DataError, IntegrityError
from samcl_core.files import digest_files
from tasks.lineage import git_state, lineage_of
from tasks.registry import CANDIDATE, RegistryUnavailable, model_name, register_bank
from tasks.serving.package import BANK_FOLDER
from tasks.tracking import log_evaluation, log_training, open_tracker, run_url, tracking_uri

pytestmark = pytest.mark.pipeline


def _fill(root: Path) -> Params:
    path = Path(__file__).parents[1] / "filled_workspace.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params: Params = module.fill(root)
    return params


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("registry") / "W"
    return root, _fill(root)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file that is migrated and empty: doing that anew takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def fresh(filled: tuple[Path, Params], empty_database: Path, tmp_path: Path) -> tuple[Path, Params]:
    """A copy of the workspace that nothing was logged of."""
    source, params = filled
    root = tmp_path / "W"
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("mlartifacts", "mlflow.db*"))
    shutil.copyfile(empty_database, root / "mlflow.db")
    return root, params


def _run(root: Path, run_id: str) -> Any:
    with open_tracker(root) as tracker:
        return tracker.client.get_run(run_id)


def _version(root: Path, version: str) -> Any:
    with open_tracker(root) as tracker:
        return tracker.client.get_model_version(model_name(), version)


def _artifacts(root: Path, run_id: str, folder: str) -> list[str]:
    with open_tracker(root) as tracker:
        return sorted(Path(item.path).name for item in tracker.client.list_artifacts(run_id, folder))


class TestTraining:
    def test_a_run_holds_parameters_curve_module_and_data(self, filled: tuple[Path, Params]) -> None:
        root, params = filled
        run_id = log_training(root, params, "Polyps", flow_run_id="flow-7")
        run = _run(root, run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["train.lr"] == "0.005"
        assert run.data.params["adapter.kind"] == "augmodule"
        assert run.data.metrics["train/total"] == 1.5
        assert run.data.tags["domain"] == "Polyps"
        assert run.data.tags["prefect_flow_run_id"] == "flow-7"
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("Polyps", ("a" * 64)[:36])
        assert _artifacts(root, run_id, "module") == ["module.json", "module.safetensors"]
        with open_tracker(root) as tracker:
            history = tracker.client.get_metric_history(run_id, "train/total")
        assert [(point.step, point.value) for point in history] == [(1, 2.5), (2, 1.5)]

    def test_the_same_module_is_one_run(self, filled: tuple[Path, Params]) -> None:
        root, params = filled
        assert log_training(root, params, "Shadows") == log_training(root, params, "Shadows")

    def test_a_module_that_is_not_there_is_named(self, filled: tuple[Path, Params], tmp_path: Path) -> None:
        _, params = filled
        with pytest.raises(DataError, match=r"modules/Polyps/module\.json is missing"):
            log_training(tmp_path, params, "Polyps")


class TestEvaluation:
    def test_a_run_holds_its_row_and_the_column_before_it(self, filled: tuple[Path, Params]) -> None:
        root, params = filled
        run = _run(root, log_evaluation(root, params, "Shadows"))
        assert run.data.metrics["iou/Shadows"] == 0.9
        assert run.data.metrics["iou/Polyps"] == 0.75
        assert run.data.metrics["summary/iou/samcl_aa"] == pytest.approx(0.825)
        assert run.data.params["domains"] == "Polyps,Shadows"
        digests = {data.dataset.name: data.dataset.digest for data in run.inputs.dataset_inputs}
        assert digests == {"Polyps": "a" * 36, "Scenes": "c" * 36, "Shadows": "b" * 36}
        with open_tracker(root) as tracker:
            history = tracker.client.get_metric_history(run.info.run_id, "iou/Shadows")
        assert [(point.step, point.value) for point in history] == [(0, 0.2), (1, 0.25), (2, 0.9)]

    def test_only_the_newest_step_holds_the_report(self, filled: tuple[Path, Params]) -> None:
        root, params = filled
        newest, older = log_evaluation(root, params, "Shadows"), log_evaluation(root, params, "Polyps")
        assert "r_matrix.parquet" in _artifacts(root, newest, "report")
        assert _artifacts(root, older, "report") == []
        assert _artifacts(root, older, "pictures") == ["Polyps.png"]

    def test_a_step_that_was_not_evaluated_is_named(self, filled: tuple[Path, Params], tmp_path: Path) -> None:
        _, params = filled
        with pytest.raises(DataError, match="step 'Polyps' is not evaluated"):
            log_evaluation(tmp_path, params, "Polyps")

    def test_a_run_that_broke_off_does_not_count(
        self, fresh: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, params = fresh
        picture = root / "pictures" / "Polyps" / "Polyps.png"
        data = picture.read_bytes()

        def lose_picture(*_: object, **__: object) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr("mlflow.MlflowClient.log_artifact", lose_picture)
            with pytest.raises(RegistryUnavailable, match="disk full"):
                log_evaluation(root, params, "Polyps")
        assert picture.read_bytes() == data
        run_id = log_evaluation(root, params, "Polyps")
        assert _run(root, run_id).info.status == "FINISHED"
        assert _artifacts(root, run_id, "pictures") == ["Polyps.png"]


class TestRegistry:
    def test_a_version_is_the_verified_bank_with_its_lineage(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        found = register_bank(root, params, "Shadows", flow_run_id="flow-9")
        bank = Bank.load(root / "banks" / "Shadows")
        assert (found.name, found.version, found.created) == (model_name(), "1", True)
        assert found.digest == bank.digest
        with open_tracker(root) as tracker:
            version = tracker.client.get_model_version_by_alias(model_name(), CANDIDATE)
            artifact_uri = str(tracker.client.get_run(found.run_id).info.artifact_uri)
        assert str(version.version) == "1"
        assert version.run_id == found.run_id
        assert version.source == f"{artifact_uri}/model"
        folder = Path(str(version.source).removeprefix("file://")) / BANK_FOLDER
        assert verify_bank(folder) == []
        assert digest_files(folder) == digest_files(root / "banks" / "Shadows")
        wanted = {
            "bank_digest": bank.digest,
            "domains": "Polyps,Shadows",
            "step": "2",
            "backbone": "tiny",
            "backbone_sha256": bank.backbone_sha256,
            "data.Polyps": "a" * 64,
            "data.Shadows": "b" * 64,
            "test_data.Scenes": "c" * 64,
            "flow_run_id": "flow-9",
            "run_id": found.run_id,
            "git_commit": "none",
            "samcl_version": "0.1.0",
        }
        assert {key: version.tags.get(key) for key in wanted} == wanted
        for name in ("params_sha256", "dvc_lock_sha256"):
            assert len(version.tags[name]) == 64

    def test_the_same_bank_is_one_version(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        first = register_bank(root, params, "Polyps")
        second = register_bank(root, params, "Polyps")
        assert (second.version, second.run_id, second.created) == (first.version, first.run_id, False)

    def test_going_over_an_old_step_does_not_bring_it_forward(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        register_bank(root, params, "Polyps")
        newest = register_bank(root, params, "Shadows")
        again = register_bank(root, params, "Polyps")
        assert not again.created
        with open_tracker(root) as tracker:
            candidate = tracker.client.get_model_version_by_alias(model_name(), CANDIDATE)
        assert str(candidate.version) == newest.version

    def test_callers_side_by_side_make_one_version(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: register_bank(root, params, "Shadows"), range(3)))
        assert {item.version for item in found} == {"1"}
        assert sum(item.created for item in found) == 1

    def test_a_version_without_a_commit_takes_over_the_first_that_makes_it(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        first = register_bank(root, params, "Shadows")
        assert _version(root, "1").tags["git_dirty"] == "true"
        again = register_bank(root, params, "Shadows", commit="c" * 40)
        assert (again.version, again.created) == (first.version, False)
        tags = _version(root, "1").tags
        assert (tags["git_commit"], tags["git_dirty"]) == ("c" * 40, "false")
        register_bank(root, params, "Shadows", commit="d" * 40)
        assert _version(root, "1").tags["git_commit"] == "c" * 40

    def test_a_damaged_bank_is_refused_before_mlflow_is_touched(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        tensors = root / "banks" / "Shadows" / "modules" / "Polyps" / "module.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x00x")
        before = (root / "mlflow.db").read_bytes()
        with pytest.raises(IntegrityError, match="Polyps"):
            register_bank(root, params, "Shadows")
        assert (root / "mlflow.db").read_bytes() == before

    def test_a_bank_that_is_not_there_is_named(self, fresh: tuple[Path, Params]) -> None:
        root, params = fresh
        shutil.rmtree(root / "banks" / "Shadows")
        with pytest.raises(BankError, match=r"there is no bank .*banks/Shadows"):
            register_bank(root, params, "Shadows")

    def test_a_server_that_does_not_answer_leaves_the_bank_as_it_was(
        self, fresh: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, params = fresh
        before = digest_files(root / "banks")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{probe.getsockname()[1]}")
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            with pytest.raises(RegistryUnavailable, match=r"MLflow at http://127\.0\.0\.1") as caught:
                register_bank(root, params, "Shadows")
        assert "samcl register" in caught.value.hint
        assert digest_files(root / "banks") == before


def test_the_workspaces_own_database_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert run_url(tmp_path, "models/x").startswith("mlflow ui --backend-store-uri sqlite:///")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:pass@mlflow.example/")
    assert tracking_uri(tmp_path) == "https://user:pass@mlflow.example/"
    assert run_url(tmp_path, "models/x") == "https://mlflow.example/#/models/x"


def test_lineage_is_the_same_for_the_same_bank(filled: tuple[Path, Params]) -> None:
    root, params = filled
    bank = Bank.load(root / "banks" / "Polyps")
    first = lineage_of(root, params, bank, run_id="r", step="Polyps")
    assert first == lineage_of(root, params, bank, run_id="r", step="Polyps")
    assert first.data == {"Polyps": "a" * 64}
    assert first.test_data == {"Polyps": "a" * 64, "Scenes": "c" * 64}
    assert first.tags()["flow_run_id"] == "none"
    assert first.values()["domains"] == ["Polyps"]
    other = params.model_copy(update={"seed": 5})
    assert lineage_of(root, other, bank, run_id="r", step="Polyps").params_sha256 != first.params_sha256


def test_git_state_says_commit_and_dirt(tmp_path: Path) -> None:
    import subprocess

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert git_state(tmp_path) == ("none", True)
    git("init", "-q")
    assert git_state(tmp_path) == ("none", True)
    (tmp_path / "params.yaml").write_text("seed: 1")
    (tmp_path / "notes").write_text("1")
    git("add", "params.yaml", "notes")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "notes").write_text("files of others do not count")
    assert git_state(tmp_path)[1] is False
    (tmp_path / "dvc.lock").write_text("files of the pipeline do, also those that git does not know")
    assert git_state(tmp_path)[1] is True
    git("add", "dvc.lock")
    assert git_state(tmp_path)[1] is True
    git("commit", "-qm", "two")
    assert git_state(tmp_path)[1] is False
    (tmp_path / "params.yaml").write_text("seed: 2")
    assert git_state(tmp_path)[1] is True
