"""The way back: from an old version to its commit, its data and the same bytes; and from data to banks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flows.arrival import Arrival, ArrivalResult
from flows.cli.main import run
from flows.stream import domain_stream
from samcl_core.bank import Bank
from samcl_core.errors import SamclError, UsageError
from samcl_core.files import digest_files
from tasks import dvc
from tasks.provenance import banks_of, provenance
from tasks.registry import model_name, register_bank
from tasks.reproduce import reproduce
from tasks.server import Server
from tasks.tracking import open_tracker
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800)]

LEARNT = ("Polyp", "Shadow", "Crack")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = init_workspace(tmp_path_factory.mktemp("lineage"), device="cpu").root
    text = (root / "params.yaml").read_text()
    for old, new in {"epochs: 20": "epochs: 1", "buffer_size: 300": "buffer_size: 8\n  epochs: 2"}.items():
        assert old in text
        text = text.replace(old, new)
    (root / "params.yaml").write_text(text)
    return Workspace(root)


@pytest.fixture(scope="module")
def learnt(workspace: Workspace, drawn: Path, server: Server) -> list[ArrivalResult]:
    """Natural images and three learnt domains: versions 1, 2 and 3."""
    sources = [Arrival(name, str(drawn / name.lower())) for name in LEARNT]
    return domain_stream(workspace.root, [*sources, Arrival("Photos", str(drawn / "natural"), "natural")])


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def set_tag(root: Path, version: str, key: str, value: str) -> None:
    with open_tracker(root) as tracker:
        tracker.client.set_model_version_tag(model_name(), version, key, value)


@pytest.fixture
def samcl(capsys: pytest.CaptureFixture[str], workspace: Workspace) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(["-C", str(workspace.root), *(str(argument) for argument in arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    return call


def test_each_version_has_a_commit_and_its_data_is_on_the_remote(
    workspace: Workspace, learnt: list[ArrivalResult]
) -> None:
    root = workspace.root
    assert [result.warnings for result in learnt] == [(), (), (), ()]
    found = [provenance(root, str(number)) for number in (1, 2, 3)]
    assert all(record["is_reproducible"] for record in found)
    assert len({record["git_commit"] for record in found}) == 3
    for record, name in zip(found, LEARNT, strict=True):
        subject = f"Learn {name}: data {record['data'][name]['training_data'][:12]}, bank {record['bank'][:12]}"
        assert git(root, "log", "-1", "--format=%s", record["git_commit"]) == subject
    assert git(root, "status", "--short") == ""
    command = [sys.executable, "-m", "dvc", "status", "--cloud", "--json"]
    remote = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(remote.stdout or "{}") == {}


def test_lineage_leads_both_ways(
    workspace: Workspace, learnt: list[ArrivalResult], samcl: Callable[..., tuple[int, str, str]]
) -> None:
    root = workspace.root
    newest = provenance(root, "@candidate")
    assert (newest["version"], newest["domains"]) == ("3", list(LEARNT))
    assert newest["data"]["Polyp"]["raw_data"] == dvc.raw_digests(root)["Polyp"]
    assert newest["data"]["Photos"]["training_data"] is None
    assert newest["flow_run"] and newest["mlflow_run"] and newest["decision"]["decision"]
    (data,) = banks_of(root, "Shadow")
    assert [bank["version"] for bank in data["banks"]] == ["2", "3"]
    assert (data["is_present"], data["holds_module"]) == (True, True)
    (scored,) = banks_of(root, "Photos")
    assert [bank["version"] for bank in scored["banks"]] == ["1", "2", "3"]
    assert not scored["holds_module"]
    with pytest.raises(UsageError, match=r"no registered bank knows domain 'Rail', known are \['Crack'"):
        banks_of(root, "Rail")

    code, out, _ = samcl("bank", "show", "2")
    record = provenance(root, "2")
    assert code == 0
    for text in ("git_commit", "dvc_lock_sha256", "params_sha256", "backbone_sha256", "mlflow_run", "flow_run", "bank"):
        assert record[text] in out
    assert record["decision"]["reason"] in out
    assert json.loads(samcl("bank", "show", "2", "--json")[1])["registered"] == record
    assert "2, 3" in samcl("bank", "of", "Shadow")[1]


def test_an_old_version_is_made_again(
    workspace: Workspace, learnt: list[ArrivalResult], samcl: Callable[..., tuple[int, str, str]]
) -> None:
    root = workspace.root
    before = git(root, "rev-parse", "HEAD"), digest_files(root / "banks"), digest_files(root / ".dvc" / "cache")
    code, out, err = samcl("reproduce", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert learnt[1].registered is not None
    assert result["is_equal"]
    assert result["found"] == learnt[1].registered["digest"]
    own = {f"{stage}@Polyp" for stage in ("ingest", "points", "embed", "train", "bank")}
    assert set(result["stages"]) == own | {f"{stage}@Photos" for stage in ("ingest", "points", "embed")} | {"base"}
    assert (result["data_from"], result["folder"]) == ("remote local", None)
    assert list((root / ".samcl" / "reproduce").iterdir()) == []
    after = git(root, "rev-parse", "HEAD"), digest_files(root / "banks"), digest_files(root / ".dvc" / "cache")
    assert after == before
    assert git(root, "status", "--short") == ""


def test_another_bank_is_seen_and_the_cache_stands_in_for_the_remote(
    workspace: Workspace, learnt: list[ArrivalResult], tmp_path: Path, samcl: Callable[..., tuple[int, str, str]]
) -> None:
    root, store = workspace.root, workspace.root / ".dvcstore"
    true = provenance(root, "1")["bank"]
    set_tag(root, "1", "bank_digest", "f" * 64)
    shutil.move(store, tmp_path / "lost")
    try:
        code, out, _ = samcl("reproduce", "1", "--into", tmp_path / "fresh")
    finally:
        set_tag(root, "1", "bank_digest", true)
        shutil.move(tmp_path / "lost", store)
    assert code == 1
    assert "data from the workspace's cache" in out
    assert f"different: version 1 is {'f' * 64}, the bank made now is {true}" in out
    assert (tmp_path / "fresh" / "banks" / "Polyp" / "bank.json").is_file()
    with pytest.raises(UsageError, match="fresh is not empty"):
        reproduce(root, "1", into=tmp_path / "fresh")


def test_the_files_that_differ_are_named(
    workspace: Workspace, learnt: list[ArrivalResult], tmp_path: Path, samcl: Callable[..., tuple[int, str, str]]
) -> None:
    """A bank in the registry whose training is not what its record says: one weight is another one."""
    root, places = workspace.root, workspace.places
    shutil.copytree(places.bank("Polyp"), tmp_path / "true")
    bank = Bank.load(places.bank("Polyp"))
    (module,) = bank.modules
    name = sorted(module.tensors)[0]
    tensors = {**module.tensors, name: module.tensors[name] + 1e-3}
    try:
        replace(bank, modules=(replace(module, tensors=tensors),)).save(places.bank("Polyp"))
        forged = register_bank(root, workspace.params(), "Polyp")
    finally:
        shutil.rmtree(places.bank("Polyp"))
        shutil.copytree(tmp_path / "true", places.bank("Polyp"))
    assert dvc.status(root) == {}
    assert forged.created

    code, out, err = samcl("reproduce", forged.version, "--json")
    assert code == 1, err
    found = json.loads(out)
    assert not found["is_equal"]
    assert (found["expected"], found["found"]) == (forged.digest, bank.digest)
    parts = ("module.json", "module.safetensors")
    assert found["differing"] == ["bank.json", *(f"modules/Polyp/{part}" for part in parts)]
    # What was made now is kept for a look.
    kept = Path(found["folder"])
    assert digest_files(next(kept.rglob("banks/Polyp"))) == digest_files(places.bank("Polyp"))
    shutil.rmtree(kept)


def test_what_cannot_be_made_again_is_refused(workspace: Workspace, learnt: list[ArrivalResult]) -> None:
    root = workspace.root
    commit = provenance(root, "2")["git_commit"]
    set_tag(root, "2", "git_dirty", "true")
    with pytest.raises(SamclError, match=r"version 2 was registered while .* not committed") as caught:
        reproduce(root, "2")
    assert caught.value.hint == "samcl register Shadow"
    register_bank(root, workspace.params(), "Shadow")
    assert provenance(root, "2")["is_reproducible"]
    assert provenance(root, "2")["git_commit"] == git(root, "rev-parse", "HEAD")

    set_tag(root, "2", "git_commit", "e" * 40)
    with pytest.raises(SamclError, match=f"does not have commit {'e' * 40}"):
        reproduce(root, "2")

    code = (root / "code.yaml").read_text()
    (root / "code.yaml").write_text(code.replace("train: ", "train: 0"))
    git(root, "commit", "-qam", "code of another day")
    set_tag(root, "2", "git_commit", git(root, "rev-parse", "HEAD"))
    with pytest.raises(SamclError, match="with other code for train than is installed") as caught:
        reproduce(root, "2")
    assert "--any-code" in caught.value.hint
    git(root, "revert", "--no-edit", "HEAD")
    set_tag(root, "2", "git_commit", commit)
