"""Domains side by side in a small graph of sleeping steps: order, failures, interruption, the limit for GPUs."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.own_part import Arrival, Progressing
from flows.side_by_side import Parts, side_by_side
from samcl_core.config import load_params
from samcl_core.errors import SamclError
from tasks import limits
from tasks.dvc import StageFailed
from tasks.ending import Ended
from tasks.limits import ensure_limits
from tasks.processes import clean_environment
from tasks.server import Server
from tasks.workspace import Workspace, template

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("server")]

Body = Callable[[Parts], None]


@flow(name="test-side-by-side", validate_parameters=False)
def in_a_flow(progress: Progressing, arrivals: list[Arrival], body: Body, is_stopping: bool = True) -> None:
    with side_by_side(progress, arrivals, is_stopping=is_stopping) as parts:
        body(parts)


STEP = """  {stage}:
    foreach: ${{domains}}
    do:
      cmd: {command}
      outs:
      - {stage}-${{key}}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """``ingest`` of the domain that the file ``bad`` names fails, of the one that ``slow`` names takes its time."""
    root = tmp_path / "w"
    root.mkdir()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=clean_environment(), check=True)
    act = "if grep -qs ${key} bad; then exit 1; fi; if grep -qs ${key} slow; then sleep 97531; fi; echo 1 >"
    stages = [STEP.format(stage="ingest", command=f"{act} ingest-${{key}}")]
    stages += [STEP.format(stage=name, command=f"echo 1 > {name}-${{key}}") for name in ("points", "embed")]
    (root / "dvc.yaml").write_text("stages:\n" + "".join(stages))
    (root / "params.yaml").write_text(template("params.yaml").replace("  runner:", "  max_parallel: 2\n  runner:"))
    return Workspace(root)


def arrivals(tmp_path: Path, names: str) -> list[Arrival]:
    found = []
    for name in names:
        source = tmp_path / "sources" / name
        source.mkdir(parents=True)
        (source / "x.png").write_text(name)
        found.append(Arrival(name, str(source), "unseen"))
    return found


def sleeping() -> int:
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return sum(line == "sleep 97531" for line in lines)


def test_a_domain_that_fails_lets_later_ones_wait_and_begun_ones_finish(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / "bad").write_text("A\n")
    path = workspace.root / "params.yaml"
    path.write_text(path.read_text().replace("max_parallel: 2", "max_parallel: 1"))
    three = arrivals(tmp_path, "ABC")
    progress = Progressing.begun(workspace)
    with pytest.raises(StageFailed, match="step ingest@A"):
        in_a_flow(progress, three, lambda parts: parts.finish(three[0]))
    assert set(workspace.params().domains) == {"A"}
    assert list((workspace.root / ".samcl" / "run").iterdir()) == []


@pytest.mark.slow
def test_a_back_fill_goes_on_and_says_for_each_how_it_went(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / "bad").write_text("B\n")
    three = arrivals(tmp_path, "ABC")
    progress = Progressing.begun(workspace)
    outcomes = {}

    def finish_all(parts: Parts) -> None:
        for arrival in three:
            try:
                parts.finish(arrival)
                outcomes[arrival.domain] = progress.outcomes
            except SamclError as exc:
                outcomes[arrival.domain] = {"error": exc.message.splitlines()[-1].split(";")[0].strip()}

    in_a_flow(progress, three, finish_all, is_stopping=False)
    ran = dict.fromkeys(("ingest", "points", "embed"), "ran")
    assert outcomes["A"] == {f"{stage}@A": outcome for stage, outcome in ran.items()}
    assert outcomes["C"] == {f"{stage}@C": outcome for stage, outcome in ran.items()}
    assert outcomes["B"] == {"error": "step ingest@B"}

    # What is up to date needs no runner: nothing is submitted, and nothing runs.
    again = Progressing.begun(workspace)

    def finish_one(parts: Parts) -> None:
        assert parts._futures == {}
        parts.finish(three[2])

    in_a_flow(again, [three[0], three[2]], finish_one)
    assert set(again.outcomes.values()) == {"skipped"}
    assert again.is_untouched


def test_an_interruption_ends_the_steps_at_once(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / "slow").write_text("A\nB\n")
    three = arrivals(tmp_path, "ABC")
    kept: list[Parts] = []
    began: list[float] = []

    def interrupt(parts: Parts) -> None:
        kept.append(parts)
        end = time.monotonic() + 120
        while sleeping() < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        began.append(time.monotonic())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_a_flow(Progressing.begun(workspace), three, interrupt)
    assert time.monotonic() - began[0] < 30
    assert sleeping() == 0
    assert list((workspace.root / ".samcl" / "run").iterdir()) == []
    for number, match in enumerate(("interrupted", "interrupted", "stopped before this domain was begun")):
        with pytest.raises(Ended, match=match):
            kept[0].finish(three[number])
    assert set(workspace.params().domains) == {"A", "B"}


@pytest.mark.slow
def test_a_running_cluster_is_used_and_left(workspace: Workspace, tmp_path: Path) -> None:
    from distributed import LocalCluster

    (workspace.root / "bad").write_text("B\n")
    two = arrivals(tmp_path, "AB")
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.ERROR}
    with LocalCluster(n_workers=2, **options) as cluster:
        path = workspace.root / "params.yaml"
        address = cluster.scheduler_address
        path.write_text(path.read_text().replace("runner: threads", f"runner: dask\n  dask_address: {address}", 1))
        path.write_text(path.read_text().replace("  dask_address:         # a", "  # a"))
        progress = Progressing.begun(workspace)

        def finish_both(parts: Parts) -> None:
            parts.finish(two[0])
            assert progress.outcomes == {f"{stage}@A": "ran" for stage in ("ingest", "points", "embed")}
            # An error of a step comes back from the other process as it was.
            with pytest.raises(StageFailed, match="step ingest@B") as caught:
                parts.finish(two[1])
            assert caught.value.log.is_file()

        in_a_flow(progress, two, finish_both)
        assert len(cluster.scheduler.workers) == 2
    assert list((workspace.root / ".samcl" / "run").iterdir()) == []


def test_the_settings_decide_how_many_train_at_a_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def slots() -> int:
        with get_client(sync_client=True) as client:
            return int(client.read_global_concurrency_limit_by_name("gpu").limit)

    before = slots()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    path = workspace.root / "params.yaml"
    text = path.read_text()
    try:
        ensure_limits(workspace.root)
        assert slots() == before, "somebody may have set it"
        path.write_text(text.replace("  runner:", "  gpus: 3\n  runner:"))
        assert load_params(path).pipeline.gpus == 3
        ensure_limits(workspace.root)
        assert slots() == 3
    finally:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(before))))
        path.write_text(text.replace("  runner:", f"  gpus: {before}\n  runner:"))
        ensure_limits(workspace.root)
    assert slots() == before


def test_waiting_for_a_slot_is_no_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside a long training, others wait in short turns: nobody shall read an error for each of them."""
    limits.ensure_limits()
    monkeypatch.setattr(limits, "_LOOK_EVERY_S", 0.3)
    monkeypatch.setattr(limits, "can_end", lambda: True)
    with limits.held("params"):
        assert limits._entered("params") is None
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
