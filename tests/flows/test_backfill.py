"""Several domains at once, one selector fit at the end, through the real flow: on threads, on Dask, and killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.arrival import Arrival
from flows.cli.main import run
from flows.stream import StreamStopped, domain_stream
from samcl_core.bank import Bank, Module
from samcl_core.errors import BankError
from samcl_core.evaluation.rmatrix import read_r_matrix
from samcl_core.files import digest_files
from samcl_core.strategies import extend_bank
from samcl_core.tensors import load_tensors
from tasks import dvc
from tasks.ledger import read_ledger
from tasks.provenance import provenance
from tasks.registry import BankVersion, all_versions, register_bank
from tasks.steps import watching
from tasks.tracking import open_tracker
from tasks.workspace import Workspace, init_workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800)]

LEARNT = ("Polyp", "Shadow", "Crack")

COMMAND = """
import pathlib, sys
from tasks.server import prefect_server
if __name__ == "__main__":
    root, drawn = sys.argv[1:]
    with prefect_server(pathlib.Path(root)):
        from flows.arrival import Arrival
        from flows.stream import domain_stream
        sources = [Arrival(name, f"{drawn}/{name.lower()}") for name in ("Polyp", "Shadow", "Crack")]
        sources.append(Arrival("Photos", f"{drawn}/natural", "natural"))
        print(domain_stream(root, sources, backfill=True)[-1].registered["digest"])
"""


class Told:
    """A watcher that writes down what began and ended."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def started(self, stage: str) -> None:
        self.events.append(("began", stage))

    def progress(self, stage: str, what: str, done: int, total: int) -> None:
        pass

    def ended(self, stage: str, outcome: str) -> None:
        self.events.append((outcome, stage))


def made(root: Path, runner: str = "threads") -> Workspace:
    workspace = init_workspace(root, device="cpu")
    path = workspace.root / "params.yaml"
    text = path.read_text()
    short = {"epochs: 20": "epochs: 1", "buffer_size: 300": "buffer_size: 8\n  epochs: 2"}
    for old, new in {**short, "runner: threads": f"runner: {runner}"}.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    assert workspace.params().pipeline.runner == runner
    return workspace


def arrivals(drawn: Path, *names: str) -> list[Arrival]:
    return [
        Arrival(
            name,
            str(drawn / ("natural" if name == "Photos" else name.lower())),
            "natural" if name == "Photos" else "learn",
        )
        for name in names
    ]


def files_of(root: Path, domain: str) -> dict[str, str]:
    names = ("modules", "banks", "data", "pictures")
    files = [path for name in names for path in sorted((root / name / domain).rglob("*")) if path.is_file()]
    files += [root / "metrics" / "steps" / f"{domain}.parquet"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lock_of(root: Path, domain: str) -> dict[str, Any]:
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    return {name: entry for name, entry in stages.items() if name.endswith(f"@{domain}")}


def versions(root: Path) -> list[BankVersion]:
    with open_tracker(root) as tracker:
        return all_versions(tracker)


def one_by_one(workspace: Workspace, *names: str) -> str:
    """Digest of the last bank when each of the modules had arrived alone."""
    params, places = workspace.params(), workspace.places
    bank = Bank.load(places.bank("base"))
    for name in names:
        embeddings, _ = load_tensors(places.embeddings("learn", name))
        bank = extend_bank(bank, Module.load(places.module(name)), embeddings["train"], params.selector, params.seed)
    return bank.digest


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, drawn: Path, server: object) -> tuple[Workspace, dict[str, Any]]:
    """One domain alone, then two as a back-fill; with what stood before that."""
    workspace = made(tmp_path_factory.mktemp("grown"))
    domain_stream(workspace.root, arrivals(drawn, "Polyp", "Photos"))
    root, told = workspace.root, Told()
    before: dict[str, Any] = {"files": files_of(root, "Polyp"), "lock": lock_of(root, "Polyp"), "told": told}
    with watching(told):
        before["results"] = domain_stream(root, arrivals(drawn, "Shadow", "Crack"), backfill=True)
    return workspace, before


def test_one_fit_one_row_one_version_one_decision(grown: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, before = grown
    root, params, told = workspace.root, workspace.params(), before["told"]
    assert (params.steps(), params.fits()) == (LEARNT, (1, 3))
    assert files_of(root, "Polyp") == before["files"]
    assert lock_of(root, "Polyp") == before["lock"]
    assert dvc.status(root) == {}

    bank = Bank.load(workspace.places.bank("Crack"))
    assert bank.digest == one_by_one(workspace, *LEARNT)
    assert Bank.load(workspace.places.bank("Shadow")).waiting == ("Shadow",)
    assert set(read_r_matrix(workspace.places.r_matrix)["step"]) == {0, 1, 3}
    summary = json.loads(workspace.places.summary.read_text())
    assert summary["num_domains"] == 3 and "iou/samcl_ft" in summary

    assert [version.domains for version in versions(root)] == [("Polyp",), LEARNT]
    shadow, crack = before["results"]
    assert shadow.registered is None
    assert crack.registered["digest"] == bank.digest
    began = [stage for what, stage in told.events if what == "began"]
    assert [stage for stage in began if stage.startswith(("register", "decide"))] == ["register@Crack", "decide@Crack"]
    # Both new domains are judged, the one inside as well.
    entry = read_ledger(root).entries[-1]
    gates = {gate["name"]: gate for gate in entry.gates}
    assert entry.version == "2"
    assert gates["better_than_zero_shot"]["found"] is not None
    rows = read_r_matrix(workspace.places.r_matrix)
    iou = rows[rows["metric"] == "iou"].set_index(["step", "domain"])["value"]
    new = LEARNT[1:] if entry.before else LEARNT
    gains = {name: iou[3, name] - iou[0, name] for name in new}
    assert gates["better_than_zero_shot"]["found"] == pytest.approx(min(gains.values()))


def test_both_were_learnt_side_by_side(grown: tuple[Workspace, dict[str, Any]]) -> None:
    events = grown[1]["told"].events
    begun = {stage: events.index(("began", stage)) for what, stage in events if what == "began"}
    over = {stage: number for number, (what, stage) in enumerate(events) if what == "ran"}
    assert begun["ingest@Crack"] < over["embed@Shadow"] and begun["ingest@Shadow"] < over["embed@Crack"]
    # One training at a time: the limit `gpu` of a machine without one, or with one.
    first, second = sorted(("Shadow", "Crack"), key=lambda name: begun[f"train@{name}"])
    assert over[f"train@{first}"] < begun[f"train@{second}"]
    assert begun["bank@Shadow"] > max(over["train@Shadow"], over["train@Crack"])


def test_the_same_again_does_nothing(grown: tuple[Workspace, dict[str, Any]], drawn: Path) -> None:
    workspace, _ = grown
    lock = (workspace.root / "dvc.lock").read_bytes()
    for backfill in (True, False):
        told = Told()
        with watching(told):
            results = domain_stream(workspace.root, arrivals(drawn, *LEARNT), backfill=backfill)
        assert told.events == []
        assert {outcome for result in results for outcome in result.outcomes.values()} == {"skipped"}
        assert results[-1].registered["version"] == "2"
    assert (workspace.root / "dvc.lock").read_bytes() == lock
    assert len(versions(workspace.root)) == 2


def test_a_bank_inside_is_shown_and_not_registered(
    grown: tuple[Workspace, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = grown
    with pytest.raises(BankError, match="inside a back-fill: its selector does not know Shadow yet") as caught:
        register_bank(workspace.root, workspace.params(), "Shadow")
    assert caught.value.hint == "samcl register Crack"

    def samcl(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(["-C", str(workspace.root), *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    assert "the selector does not know Shadow yet" in samcl("bank", "show", "Shadow")
    assert json.loads(samcl("bank", "show", "--json"))["waiting"] == []
    assert json.loads(samcl("register", "--json"))["version"] == "2"
    assert "3 Shadow, Crack" in samcl("evaluate")
    made_of = provenance(workspace.root, "2")
    assert made_of["domains"] == list(LEARNT) and set(made_of["data"]) == {*LEARNT, "Photos"}
    assert made_of["is_reproducible"]


def test_a_back_fill_is_made_again(grown: tuple[Workspace, dict[str, Any]]) -> None:
    from tasks.reproduce import reproduce

    found = reproduce(grown[0].root, "2")
    assert found.is_equal and found.differing == ()
    assert {"bank@Polyp", "bank@Shadow", "bank@Crack"} <= set(found.stages)


def test_one_that_fails_does_not_hold_the_others_up(
    grown: tuple[Workspace, dict[str, Any]], drawn: Path, tmp_path: Path
) -> None:
    root = tmp_path / "w"
    workspace = made(root)
    broken = tmp_path / "shadow"
    shutil.copytree(drawn / "shadow", broken)
    for image in (broken / "train" / "images").iterdir():
        image.write_bytes(b"not a picture")
    sources = [*arrivals(drawn, "Polyp"), Arrival("Shadow", str(broken)), *arrivals(drawn, "Crack")]
    with pytest.raises(StreamStopped, match=r"Shadow: [\s\S]*done and kept: Polyp, Crack") as caught:
        domain_stream(root, sources, backfill=True)
    assert caught.value.done == ("Polyp", "Crack")
    assert (workspace.params().steps(), workspace.params().fits()) == (("Polyp", "Crack"), (2,))
    assert [version.domains for version in versions(root)] == [("Polyp", "Crack")]
    assert digest_files(workspace.places.module("Crack")) == digest_files(grown[0].places.module("Crack"))


def test_dask_workers_make_the_same_bank(grown: tuple[Workspace, dict[str, Any]], drawn: Path, tmp_path: Path) -> None:
    workspace = made(tmp_path / "w", runner="dask")
    told = Told()
    with watching(told):
        results = domain_stream(workspace.root, arrivals(drawn, *LEARNT, "Photos"), backfill=True)
    assert results[-1].registered is not None
    assert results[-1].registered["digest"] == versions(grown[0].root)[-1].digest
    for name in LEARNT:
        assert digest_files(workspace.places.module(name)) == digest_files(grown[0].places.module(name))
    assert dvc.status(workspace.root) == {}
    assert set(workspace.params().domains) == {*LEARNT, "Photos"}
    # Other processes did it; the watcher is told of their stages, too.
    assert ("ran", "train@Crack") in told.events and ("ran", "embed@Photos") in told.events
    owners = {path.read_text() for path in (workspace.root / ".samcl" / "run").glob("*.json")}
    assert owners == set()


def start(workspace: Workspace, drawn: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    environment.pop("PREFECT_API_URL", None)
    arguments = [sys.executable, "-c", COMMAND, str(workspace.root), str(drawn)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def interrupt_in(workspace: Workspace, drawn: Path, target: str, number: int, until: Callable[[], bool]) -> int | None:
    """Run the back-fill until it is inside a step, then send a signal; returns how the command ended."""
    log = workspace.root / ".samcl" / "logs" / f"{target}.log"
    with start(workspace, drawn) as command:
        end = time.monotonic() + 300
        while not (log.is_file() and f"Running stage '{target}'" in log.read_text() and until()):
            assert command.poll() is None
            assert time.monotonic() < end, f"{target} never began"
            time.sleep(0.02)
        command.send_signal(number)
        command.wait(timeout=120)
    return command.returncode


def test_a_back_fill_that_is_killed_twice_ends_with_the_same_bank(
    grown: tuple[Workspace, dict[str, Any]], drawn: Path, tmp_path: Path
) -> None:
    workspace = made(tmp_path / "w")
    run_folder = workspace.root / ".samcl" / "run"

    def both_run() -> bool:
        return len(list(run_folder.glob("*@*.json"))) >= 2

    # Asked to end: the steps of both domains end with it, at once, and leave no note behind.
    assert interrupt_in(workspace, drawn, "embed@Polyp", signal.SIGTERM, both_run) != 0
    assert list(run_folder.iterdir()) == []

    assert interrupt_in(workspace, drawn, "train@Shadow", signal.SIGKILL, lambda: True) == -signal.SIGKILL
    assert workspace.params().steps() == ()
    assert interrupt_in(workspace, drawn, "bank@Shadow", signal.SIGKILL, lambda: True) == -signal.SIGKILL
    assert workspace.params().fits() == (3,)
    assert versions(workspace.root) == []

    with start(workspace, drawn) as command:
        out, _ = command.communicate(timeout=900)
    assert command.returncode == 0
    expected = versions(grown[0].root)[-1].digest
    assert out.strip() == expected
    assert [version.digest for version in versions(workspace.root)] == [expected]
    assert dvc.status(workspace.root) == {}
    assert list(run_folder.glob("*.json")) == []
