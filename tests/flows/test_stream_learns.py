"""The real flows on tiny real data: learn, repeat, extend, fail, and what a flow run shows. One workspace, in order."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.arrival import Arrival, ArrivalResult, domain_arrival
from flows.stream import StreamStopped, domain_stream
from samcl_core.bank import Bank
from samcl_core.evaluation.rmatrix import read_r_matrix
from tasks import dvc
from tasks.server import Server
from tasks.steps import watching
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("server")]


class Told:
    """A watcher that writes everything down."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.over: dict[str, str] = {}
        self.reports: list[tuple[str, str, int, int]] = []

    def started(self, stage: str) -> None:
        self.begun.append(stage)

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        self.reports.append((stage, what, done, total))

    def ended(self, stage: str, outcome: str) -> None:
        self.over[stage] = outcome


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = init_workspace(tmp_path_factory.mktemp("stream"), device="cpu").root
    text = (root / "params.yaml").read_text()
    for old, new in {
        "epochs: 20": "epochs: 1",
        "lr: 0.005": "lr: 0.005\n  checkpoint_every_epochs: 1",
        "buffer_size: 300": "buffer_size: 8\n  epochs: 2",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (root / "params.yaml").write_text(text)
    return Workspace(root)


@pytest.fixture(scope="module")
def first(workspace: Workspace, drawn: Path, server: Server) -> tuple[list[ArrivalResult], Told]:
    """Natural images and one learnt domain."""
    told = Told()
    sources = [Arrival("Polyp", str(drawn / "polyp")), Arrival("Photos", str(drawn / "natural"), "natural")]
    with watching(told):
        return domain_stream(workspace.root, sources), told


@dataclass(frozen=True)
class Second:
    """What stood before the second domain arrived, and how that went."""

    files: dict[str, str]
    lock: dict[str, Any]
    result: ArrivalResult


@pytest.fixture(scope="module")
def second(workspace: Workspace, first: tuple[list[ArrivalResult], Told], drawn: Path) -> Second:
    """Another learnt domain. Tests that need only the first one stand above those that ask for this."""
    root = workspace.root
    before, lock = files_of(root, "Polyp"), lock_of(root, "Polyp")
    return Second(before, lock, domain_arrival(root, drawn / "shadow", "Shadow"))


def files_of(root: Path, domain: str) -> dict[str, str]:
    folders = [root / "modules" / domain, root / "banks" / domain, root / "data" / domain]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lock_of(root: Path, domain: str) -> dict[str, Any]:
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    return {name: entry for name, entry in stages.items() if name.endswith(f"@{domain}")}


def artifacts() -> dict[str, Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {artifact.key: artifact.data for artifact in client.read_artifacts()}


def versions(root: Path) -> list[Any]:
    from mlflow import MlflowClient

    from tasks.tracking import tracking_uri

    client = MlflowClient(tracking_uri(root))
    return sorted(client.search_model_versions("name = 'samcl-bank'"), key=lambda version: int(version.version))


def test_a_stream_learns_and_publishes(workspace: Workspace, first: tuple[list[ArrivalResult], Told]) -> None:
    (natural, learnt), told = first
    assert (natural.domain, natural.registered) == ("Photos", None)
    assert set(natural.outcomes.values()) == {"ran"}
    stages = ("ingest", "points", "embed", "train")
    expected = [*(f"{stage}@Polyp" for stage in stages), "base", "bank@Polyp", "evaluate@Polyp", "report"]
    assert list(learnt.outcomes) == expected
    # Photos and Polyp side by side; what both have to do is begun before the first bank.
    for domain in ("Photos", "Polyp"):
        own = [stage for stage in told.begun if stage.endswith(f"@{domain}")]
        assert own[:4] == [f"{stage}@{domain}" for stage in ("receive", "ingest", "points", "embed")]
    assert told.begun.index("base") > told.begun.index("embed@Photos")
    assert told.over["register@Polyp"] == "ran"
    assert any(stage == "train@Polyp" and total for stage, _, _, total in told.reports)
    assert dvc.status(workspace.root) == {}
    bank = Bank.load(workspace.places.bank("Polyp"))
    assert learnt.registered is not None
    assert learnt.registered["digest"] == bank.digest
    assert learnt.registered["created"]
    frame = read_r_matrix(workspace.places.r_matrix)
    assert set(frame["step"]) == {0, 1}
    assert set(frame["domain"]) == {"Polyp", "Photos"}


def test_the_flow_run_shows_matrix_pictures_and_version(first: tuple[list[ArrivalResult], Told]) -> None:
    shown = artifacts()
    assert "| 1 Polyp |" in shown["r-matrix"]
    assert "data:image/jpeg;base64," in shown["pictures-polyp"]
    registered = first[0][1].registered
    assert registered is not None
    assert registered["digest"] in shown["bank-polyp"]
    assert any(str(key).startswith("progress-train-polyp") for key in shown)


def test_the_same_again_does_nothing(
    workspace: Workspace, first: tuple[list[ArrivalResult], Told], drawn: Path
) -> None:
    told = Told()
    before = files_of(workspace.root, "Polyp")
    lock = (workspace.root / "dvc.lock").read_bytes()
    with watching(told):
        result = domain_arrival(workspace.root, drawn / "polyp", "Polyp")
    assert set(result.outcomes.values()) == {"skipped"}
    assert told.begun == []
    assert result.registered is not None
    assert not result.registered["created"]
    assert files_of(workspace.root, "Polyp") == before
    assert (workspace.root / "dvc.lock").read_bytes() == lock
    assert len(versions(workspace.root)) == 1


def test_a_failing_domain_stops_the_stream_and_takes_nothing_away(
    workspace: Workspace, first: tuple[list[ArrivalResult], Told], drawn: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(drawn / "crack", broken)
    for image in (broken / "train" / "images").iterdir():
        image.write_bytes(b"not a picture")
    before = files_of(workspace.root, "Polyp")
    sources = [
        Arrival("Polyp", str(drawn / "polyp")),
        Arrival("Crack", str(broken)),
        Arrival("Z", str(drawn / "shadow")),
    ]
    with pytest.raises(StreamStopped, match="Crack: ") as caught:
        domain_stream(workspace.root, sources)
    assert caught.value.done == ("Polyp",)
    # What was begun beside it was finished, and is not published.
    assert "bank@Z" not in (workspace.root / "dvc.lock").read_text()
    assert "ingest@Crack.log" in caught.value.message
    assert files_of(workspace.root, "Polyp") == before
    assert workspace.params().steps() == ("Polyp",)
    assert len(versions(workspace.root)) == 1
    for name in {"Crack", "Z"} & set(workspace.params().domains):
        workspace.remove_domain(name)
    assert dvc.status(workspace.root) == {}


def test_another_domain_runs_its_own_stages_and_the_fan_in(workspace: Workspace, second: Second) -> None:
    root = workspace.root
    ran = [target for target, outcome in second.result.outcomes.items() if outcome == "ran"]
    stages = ("ingest", "points", "embed", "train", "bank", "evaluate")
    assert ran == [*(f"{stage}@Shadow" for stage in stages), "report"]
    assert files_of(root, "Polyp") == second.files
    assert lock_of(root, "Polyp") == second.lock
    assert dvc.status(root) == {}
    assert workspace.params().stream["Shadow"].previous == "Polyp"
    assert len(versions(root)) == 2
    assert Bank.load(workspace.places.bank("Shadow")).names == ("Polyp", "Shadow")


@pytest.mark.slow
def test_changed_data_carries_through_to_the_last_bank(
    workspace: Workspace, second: Second, drawn: Path, tmp_path: Path
) -> None:
    root = workspace.root
    assert workspace.params().steps() == ("Polyp", "Shadow")
    fewer = tmp_path / "polyp"
    shutil.copytree(drawn / "polyp", fewer)
    name = sorted(path.name for path in (fewer / "train" / "images").iterdir())[0]
    for kind in ("images", "masks"):
        (fewer / "train" / kind / name).unlink()
    shadow = files_of(root, "Shadow")
    module = {path: digest for path, digest in shadow.items() if "/banks/" not in path}
    result = domain_arrival(root, fewer, "Polyp")
    assert {target for target, outcome in result.outcomes.items() if outcome == "skipped"} <= {"base"}
    assert dvc.status(root) == {}
    after = files_of(root, "Shadow")
    assert {path: digest for path, digest in after.items() if "/banks/" not in path} == module
    assert after != shadow
    assert result.registered is not None
    assert result.registered["digest"] == Bank.load(workspace.places.bank("Shadow")).digest


@pytest.mark.slow
def test_removing_the_first_domain_leaves_a_stream_that_heals(
    workspace: Workspace, second: Second, drawn: Path
) -> None:
    root = workspace.root
    assert workspace.remove_domain("Polyp") == ("Shadow",)
    assert set(dvc.status(root)) >= {"bank@Shadow", "evaluate@Shadow"}
    result = domain_arrival(root, drawn / "shadow", "Shadow")
    assert result.outcomes["train@Shadow"] == "skipped"
    assert Bank.load(workspace.places.bank("Shadow")).names == ("Shadow",)
    assert dvc.status(root) == {}
