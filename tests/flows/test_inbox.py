"""The inbox: what is dropped is taken once it is complete, learnt or put aside with a reason, and never lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.inbox import drop_arrival, inbox_look
from samcl_core.bank import Bank
from samcl_core.config import InboxParams
from samcl_core.errors import SamclError, UsageError
from tasks import inbox, taken
from tasks.server import Server
from tasks.workspace import Workspace, init_workspace, template

pytestmark = pytest.mark.pipeline


def options(**more: Any) -> InboxParams:
    return InboxParams(**{"interval_s": 10.0, **more})


def zip_of(folder: Path, archive: Path, **more: bytes) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as stream:
        for path in sorted(folder.rglob("*")):
            stream.write(path, f"{folder.name}/{path.relative_to(folder)}")
        for name, data in more.items():
            stream.writestr(name, data)
    return archive


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def put(source: Path, root: Path, name: str, *, is_done: bool = True) -> Path:
    target = root / "data" / "inbox" / name
    shutil.copytree(source, target)
    if is_done:
        target.with_name(f"{name}.done").touch()
    return target


class TestLooks:
    """What a look takes; no flow, no DVC."""

    def look(self, root: Path, now: float, **more: Any) -> dict[str, inbox.Seen]:
        with inbox.looking(root) as is_free:
            assert is_free
            return {seen.name: seen for seen in inbox.look(root, options(**more), now)}

    def test_a_half_copied_drop_is_left_until_it_is_complete(self, tmp_path: Path, drawn: Path) -> None:
        target = put(drawn / "polyp", tmp_path, "Polyp", is_done=False)
        last = sorted(path for path in target.rglob("*.png"))[-1]
        data = last.read_bytes()
        last.write_bytes(data[:10])
        assert self.look(tmp_path, 0)["Polyp"].state == "waiting"
        last.write_bytes(data)
        assert "1 of 2 looks" in self.look(tmp_path, 10)["Polyp"].why
        assert self.look(tmp_path, 11)["Polyp"].state == "waiting", "a look that comes at once says nothing new"
        found = self.look(tmp_path, 20)["Polyp"]
        assert found.state == "taken"
        assert not target.exists()
        (record,) = taken.leftovers(tmp_path)
        assert (record.id, record.origin) == (found.drop, "data/inbox/Polyp")
        assert files_below(record.payload(tmp_path)) == files_below(drawn / "polyp")
        assert self.look(tmp_path, 30) == {}

    def test_a_marked_drop_is_taken_at_once_and_the_marker_goes_first(self, tmp_path: Path, drawn: Path) -> None:
        put(drawn / "polyp", tmp_path, "Polyp")
        assert self.look(tmp_path, 0)["Polyp"].state == "taken"
        assert list((tmp_path / "data" / "inbox").iterdir()) == []

    def test_a_damaged_state_file_costs_one_more_look(self, tmp_path: Path, drawn: Path) -> None:
        put(drawn / "polyp", tmp_path, "Polyp", is_done=False)
        self.look(tmp_path, 0)
        (tmp_path / ".samcl" / "inbox.json").write_text('{"looks": {"Pol')
        assert self.look(tmp_path, 10)["Polyp"].state == "waiting"
        assert self.look(tmp_path, 20)["Polyp"].state == "taken"

    def test_two_commands_do_not_look_at_once(self, tmp_path: Path) -> None:
        with inbox.looking(tmp_path) as first, inbox.looking(tmp_path) as second:
            assert (first, second) == (True, False)
        with inbox.looking(tmp_path) as third:
            assert third

    def test_killed_before_the_move_the_drop_is_in_the_inbox_still(
        self, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(drawn / "polyp", tmp_path, "Polyp")

        def killed(*_: Any) -> None:
            os._exit(9)

        child = os.fork() if hasattr(os, "fork") else pytest.fail("needs fork")
        if child == 0:
            monkeypatch.setattr(inbox.Inbox, "take", killed)
            self.look(tmp_path, 0)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert (tmp_path / "data" / "inbox" / "Polyp").is_dir()
        assert taken.leftovers(tmp_path) == []
        assert self.look(tmp_path, 1)["Polyp"].state == "taken"

    def test_a_remote_inbox_is_fetched_and_emptied(self, tmp_path: Path, drawn: Path) -> None:
        import fsspec

        fs = fsspec.filesystem("memory")
        url = f"memory://samcl-{os.getpid()}/inbox"
        base = url.removeprefix("memory://")
        assert self.look(tmp_path, 0, url=url) == {}
        for path in sorted((drawn / "polyp").rglob("*.png")):
            fs.pipe_file(f"{base}/Polyp/{path.relative_to(drawn / 'polyp')}", path.read_bytes())
        fs.pipe_file(f"{base}/Shadow.zip", zip_of(drawn / "shadow", tmp_path / "s.zip").read_bytes())
        fs.pipe_file(f"{base}/Shadow.done", b"")
        first = self.look(tmp_path, 0, url=url)
        assert {name: seen.state for name, seen in first.items()} == {"Polyp": "waiting", "Shadow.zip": "taken"}
        assert self.look(tmp_path, 10, url=url)["Polyp"].state == "taken"
        records = {record.name: record for record in taken.leftovers(tmp_path)}
        assert files_below(records["Polyp"].payload(tmp_path)) == files_below(drawn / "polyp")
        assert records["Shadow.zip"].payload(tmp_path).read_bytes() == (tmp_path / "s.zip").read_bytes()
        assert fs.find(base) == []

    @pytest.mark.parametrize(
        ("url", "problem"), [("/nowhere/inbox", "is no folder"), ("nosuch://bucket", "no address that can be opened")]
    )
    def test_an_inbox_that_is_not_there(self, tmp_path: Path, url: str, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            inbox.Inbox(tmp_path, url)


class TestRejection:
    """A bad drop: looked at before anything of the workspace is touched, moved whole, with a report."""

    @pytest.fixture
    def workspace(self, tmp_path: Path) -> Workspace:
        (tmp_path / "params.yaml").write_text("version: 1\ndomains:\n  Photos: {role: natural}\n")
        return Workspace(tmp_path)

    def rejected(self, workspace: Workspace, **more: Any) -> tuple[Path, SamclError]:
        """Take the only drop, prepare it, reject it."""
        root = workspace.root
        with inbox.looking(root):
            (seen,) = inbox.look(root, options(), 0)
        assert seen.drop is not None
        record = taken.read_taken(root, seen.drop)
        with pytest.raises(SamclError) as caught:
            taken.prepare(root, workspace.params(), record)
        return taken.reject(root, workspace.params(), record, caught.value), caught.value

    def drop(self, workspace: Workspace, drawn: Path, change: Callable[[Path], None]) -> Path:
        target = put(drawn / "polyp", workspace.root, "Polyp", is_done=False)
        change(target)
        (target / ".complete").touch()
        return target

    def test_unreadable_images(self, workspace: Workspace, drawn: Path) -> None:
        def spoil(folder: Path) -> None:
            for path in (folder / "train" / "images").iterdir():
                path.write_bytes(b"not a picture")

        self.drop(workspace, drawn, spoil)
        folder, error = self.rejected(workspace)
        report = (folder / "report.md").read_text()
        assert "4 of 6 images cannot be used (67%), at most 20% may be" in error.message
        assert error.message in report
        assert report.count("`train/images/") == 4, "every bad file is named"
        name = folder.name
        assert f"mv data/rejected/{name}/Polyp data/inbox/Polyp\ntouch data/inbox/Polyp.done\nsamcl inbox" in report
        assert error.hint in report
        assert files_below(folder / "Polyp") == files_below(drawn / "polyp")
        assert name.startswith("Polyp-2")
        assert taken.leftovers(workspace.root) == []
        assert files_below(workspace.root / "data") == {f"rejected/{name}/{file}" for file in files_below(folder)}

    @pytest.mark.parametrize(
        ("card", "problem"),
        [
            ("role: teach", "role: .*found 'teach'"),
            ("name: Photos", "'Photos' is declared with role 'natural', the drop says 'learn'|differ"),
            ("name: photos", "differ only in case"),
            ("format: coco9", "format 'coco9' is unknown"),
            ("test: [x9.png]", "test names 'x9.png'"),
        ],
    )
    def test_wrong_cards(self, workspace: Workspace, drawn: Path, card: str, problem: str) -> None:
        import re

        text = card + ("\nrole: learn" if "Photos" in card else "")
        self.drop(workspace, drawn, lambda folder: (folder / "domain.yaml").write_text(text) and None)
        folder, error = self.rejected(workspace)
        assert re.search(problem, error.message)
        assert error.message in (folder / "report.md").read_text()

    def test_a_link_that_leads_out(self, workspace: Workspace, drawn: Path) -> None:
        self.drop(workspace, drawn, lambda folder: (folder / "train" / "images" / "z.png").symlink_to("/etc/passwd"))
        folder, error = self.rejected(workspace)
        assert "leads out of the source" in error.message
        assert (folder / "Polyp" / "train" / "images" / "z.png").is_symlink()

    def test_a_stray_file_and_a_hostile_archive(self, workspace: Workspace, drawn: Path) -> None:
        root = workspace.root
        place = root / "data" / "inbox"
        place.mkdir(parents=True)
        (place / "table.csv").write_text("a,b\n")
        (place / "table.csv.done").touch()
        folder, error = self.rejected(workspace)
        assert "table.csv is neither a folder nor an archive" in error.message
        assert (folder / "table.csv").read_text() == "a,b\n"
        zip_of(drawn / "polyp", place / "Polyp.zip", **{"../../../evil.txt": b"x"})
        (place / "Polyp.done").touch()
        folder, error = self.rejected(workspace)
        report = (folder / "report.md").read_text()
        assert "'../../../evil.txt' leads out of the folder" in report
        assert "An archive with plain files and folders only" in report
        assert files_below(folder) == {"report.md", "Polyp.zip", ".drop.json"}
        assert not list(root.rglob("evil.txt"))

    def test_a_good_archive_is_prepared(self, workspace: Workspace, drawn: Path) -> None:
        root = workspace.root
        card = b"name: Renamed\nlabel: Polyps\nnotes: from two readers\n"
        zip_of(drawn / "polyp", root / "data" / "inbox" / "Polyp.zip", **{"domain.yaml": card})
        (root / "data" / "inbox" / "Polyp.zip.done").touch()
        with inbox.looking(root):
            (seen,) = inbox.look(root, options(), 0)
        record = taken.read_taken(root, str(seen.drop))
        found = taken.prepare(root, workspace.params(), record)
        assert (found.domain, found.role, found.label, found.notes) == (
            "Renamed",
            "learn",
            "Polyps",
            "from two readers",
        )
        assert (found.num_train, found.num_test, found.reasons) == (4, 2, {})
        assert record.payload(root).is_file()


class TestAnnounced:
    def test_data_elsewhere_stays_there(self, tmp_path: Path, drawn: Path) -> None:
        record = inbox.announce(tmp_path, options(), str(drawn / "polyp"), domain="Given", role="", format=None)
        assert (record.domain, record.role, record.payload(tmp_path)) == ("Given", None, drawn / "polyp")
        again = inbox.announce(tmp_path, options(), str(drawn / "polyp"), domain="Given", role=None, format="")
        assert again == record
        assert [one.id for one in taken.leftovers(tmp_path)] == [record.id]
        (tmp_path / "params.yaml").write_text("version: 1\n")
        folder = taken.reject(tmp_path, Workspace(tmp_path).params(), record, UsageError("no", hint="yes"))
        assert "samcl arrive" in (folder / "report.md").read_text()
        assert (drawn / "polyp").is_dir()

    def test_one_in_the_inbox_is_moved_out(self, tmp_path: Path, drawn: Path) -> None:
        put(drawn / "polyp", tmp_path, "Polyp", is_done=False)
        record = inbox.announce(tmp_path, options(), "data/inbox/Polyp", role="unseen")
        assert record.role == "unseen"
        assert record.payload(tmp_path).is_dir()
        assert not (tmp_path / "data" / "inbox" / "Polyp").exists()

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not exist"):
            inbox.announce(tmp_path, options(), "/nowhere/at/all")


def small(root: Path, **more: Any) -> Workspace:
    """A workspace whose trainings take a second."""
    init_workspace(root, device="cpu")
    path = root / "params.yaml"
    values = YAML(typ="safe").load(path.read_text())
    values["train"] |= {"epochs": 1}
    values["selector"] |= {"buffer_size": 8, "epochs": 2, "min_steps": 5}
    values["inbox"] |= more
    with path.open("w") as stream:
        YAML(typ="safe").dump(values, stream)
    return Workspace(root)


def runs(**filters: Any) -> list[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return list(client.read_flow_runs(**filters))


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small(tmp_path_factory.mktemp("inbox"), interval_s=86_400)


@pytest.fixture(scope="module")
def first(learning: Workspace, drawn: Path, server: Server) -> dict[str, dict[str, Any]]:
    root = learning.root
    put(drawn / "polyp", root, "Polyp")
    zip_of(drawn / "shadow", root / "data" / "inbox" / "Shadow.zip")
    (root / "data" / "inbox" / "Shadow.done").touch()
    put(drawn / "crack", root, "Half", is_done=False)
    bad = put(drawn / "crack", root, "Bad")
    (bad / "domain.yaml").write_text("role: teach\n")
    os.utime(bad / "domain.yaml", (0, 0))
    return {one["name"]: one for one in inbox_look(root)}


@pytest.mark.slow
@pytest.mark.usefixtures("server")
class TestLookFlow:
    """One workspace, in order: two drops and a bad one at once, the same again, a new version."""

    def test_both_arrive_the_bad_one_is_put_aside_the_half_one_waits(
        self, learning: Workspace, first: dict[str, dict[str, Any]]
    ) -> None:
        states = {name: one["state"] for name, one in first.items()}
        assert states == {"Polyp": "learnt", "Shadow.zip": "learnt", "Bad": "rejected", "Half": "waiting"}
        root = learning.root
        assert set(learning.params().steps()) == {"Polyp", "Shadow"}
        last = learning.params().steps()[-1]
        registered = max((one["registered"] for one in first.values() if one.get("registered")), key=_version)
        assert registered["digest"] == Bank.load(learning.places.bank(last)).digest
        assert (root / first["Bad"]["report"]).is_file()
        assert [path.name for path in (root / "data" / "inbox").iterdir()] == ["Half"]
        assert taken.leftovers(root) == []

    def test_the_runs_say_what_happened(self, first: dict[str, dict[str, Any]]) -> None:
        found = {run.name: run.state_name for run in runs()}
        bad = next(name for name in found if name.startswith("drop Bad-"))
        assert found[bad] == "Rejected"
        assert found["look into the inbox"] == "With problems"
        assert any(name.startswith("drop Polyp-") for name in found)

    def test_the_same_again_changes_nothing(
        self, learning: Workspace, first: dict[str, dict[str, Any]], drawn: Path
    ) -> None:
        root = learning.root
        lock = (root / "dvc.lock").read_bytes()
        # What came as a folder comes as an archive, and the other way round.
        zip_of(drawn / "polyp", root / "data" / "inbox" / "Polyp.zip")
        (root / "data" / "inbox" / "Polyp.zip.done").touch()
        put(drawn / "shadow", root, "Shadow")
        results = [one for one in inbox_look(root) if one["state"] != "waiting"]
        assert {one["name"]: one["state"] for one in results} == {"Polyp.zip": "unchanged", "Shadow": "unchanged"}
        assert {outcome for one in results for outcome in one["outcomes"].values()} == {"skipped"}
        assert (root / "dvc.lock").read_bytes() == lock
        assert taken.leftovers(root) == []

    def test_changed_content_is_a_new_version_of_its_domain_alone(
        self, learning: Workspace, first: dict[str, dict[str, Any]], drawn: Path
    ) -> None:
        root = learning.root
        module = learning.places.module("Polyp") / "module.safetensors"
        before = module.read_bytes()
        changed = put(drawn / "shadow", root, "Shadow", is_done=False)
        name = sorted(path.name for path in (changed / "train" / "images").iterdir())[0]
        for kind in ("images", "masks"):
            (changed / "train" / kind / name).unlink()
        (changed / ".complete").touch()
        (found,) = [one for one in inbox_look(root) if one["state"] != "waiting"]
        assert (found["state"], found["domain"]) == ("learnt", "Shadow")
        assert found["outcomes"]["train@Shadow"] == "ran"
        assert module.read_bytes() == before
        assert not any(target.endswith("train@Polyp") for target in found["outcomes"])

    def test_a_failure_that_is_not_the_datas_is_tried_again(
        self, learning: Workspace, first: dict[str, dict[str, Any]], drawn: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import flows.inbox

        def broken(*_: Any) -> None:
            raise SamclError("the disk is full", hint="make room")

        put(drawn / "polyp", learning.root, "Polyp")
        with monkeypatch.context() as patch:
            patch.setattr(flows.inbox, "domain_arrival", broken)
            for tries in (1, 2):
                (failed,) = [one for one in inbox_look(learning.root) if one["state"] != "waiting"]
                assert (failed["state"], failed["why"], failed["next"]) == ("failed", "the disk is full", "make room")
                (record,) = taken.leftovers(learning.root)
                assert (record.tries, record.error) == (tries, "the disk is full")
        (done,) = [one for one in inbox_look(learning.root) if one["state"] != "waiting"]
        assert done["state"] in {"unchanged", "learnt"}
        assert taken.leftovers(learning.root) == []

    def test_a_path_from_an_event(self, learning: Workspace, first: dict[str, dict[str, Any]], drawn: Path) -> None:
        result = drop_arrival(learning.root, path=str(drawn / "natural"), domain="Photos", role="natural", label="")
        assert (result["state"], result["domain"]) == ("taken in", "Photos")
        assert (drawn / "natural").is_dir()
        assert learning.params().domains["Photos"].role == "natural"

    def test_the_champion_is_scored_again(self, learning: Workspace, first: dict[str, dict[str, Any]]) -> None:
        from flows.evaluation import champion_evaluation
        from flows.promotion import bank_promotion

        assert champion_evaluation(learning.root)["version"] is None
        bank_promotion(learning.root, "@candidate", actor="a test", force=True, reason="tiny data")
        found = champion_evaluation(learning.root)
        assert found["version"] is not None
        assert {one["domain"] for one in found["scores"]} >= {"Polyp", "Shadow"}
        assert found["changed"] == []
        assert all(one["before"] is not None for one in found["scores"])


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_prefect_yaml_deploys_to_a_work_pool(tmp_path: Path, server: Server) -> None:
    (tmp_path / "prefect.yaml").write_text(template("prefect.yaml"))
    environment = os.environ | {"PREFECT_API_URL": server.url, "PWD": str(tmp_path)}  # as a shell would have it
    for words in (("work-pool", "create", "samcl", "--type", "process"), ("--no-prompt", "deploy", "--all")):
        command = [sys.executable, "-m", "prefect", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = {client.read_flow(one.flow_id).name: one for one in client.read_deployments() if one.name == "pool"}
    assert set(found) == {"inbox", "drop-arrival", "domain-stream", "champion-evaluation"}
    assert all(one.parameters["root"] == str(tmp_path) for one in found.values())
    assert [len(found[name].schedules) for name in ("inbox", "drop-arrival", "champion-evaluation")] == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_deployments_of_a_workspace(tmp_path: Path) -> None:
    from flows.deploy import deployments_of

    (tmp_path / "params.yaml").write_text("version: 1\ninbox: {interval_s: 90, max_parallel: 3}\n")
    found = {one.flow_name: one for one in deployments_of(tmp_path, name="my data", nightly="30 2 * * *")}
    assert {one.name for one in found.values()} == {"my-data"}
    assert found["inbox"].parameters == {"root": str(tmp_path), "arrivals": "drop-arrival/my-data"}
    assert found["inbox"].schedules is not None
    assert found["inbox"].schedules[0].schedule.interval.total_seconds() == 90
    assert found["drop-arrival"].concurrency_limit == 3
    with pytest.raises(UsageError, match="'at night' is no cron expression"):
        deployments_of(tmp_path, nightly="at night")


def _version(registered: dict[str, Any]) -> int:
    return int(registered["version"])


@pytest.mark.slow
class TestDeployed:
    """`samcl deploy` as people run it: a process of its own, its own server, its own runs."""

    @pytest.fixture
    def served(self, tmp_path: Path) -> Iterator[tuple[Workspace, subprocess.Popen[str]]]:
        workspace = small(tmp_path / "w", interval_s=15, settle_looks=2)
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
        environment["PREFECT_RUNNER_POLL_FREQUENCY"] = "1"
        command = [sys.executable, "-m", "flows.cli", "-C", str(workspace.root), "deploy", "--name", "test"]
        log = (tmp_path / "deploy.log").open("w")
        cwd = Path(__file__).parents[2]
        with subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log, text=True) as process:
            try:
                yield workspace, process
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                stop = [*command[:5], "server", "--stop"]
                subprocess.run(stop, cwd=cwd, env=environment, check=False, capture_output=True)
                log.close()

    def until(self, is_true: Callable[[], object], process: subprocess.Popen[str], log: Path, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not is_true():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(1)

    def test_the_schedule_takes_two_drops_and_puts_a_bad_one_aside(
        self, served: tuple[Workspace, subprocess.Popen[str]], drawn: Path, tmp_path: Path
    ) -> None:
        from samcl_core.evaluation.rmatrix import read_r_matrix

        workspace, process = served
        root, log = workspace.root, tmp_path / "deploy.log"
        put(drawn / "polyp", root, "Polyp")
        put(drawn / "shadow", root, "Shadow", is_done=False)
        bad = put(drawn / "crack", root, "Bad")
        shutil.rmtree(bad / "train" / "masks")
        bad.with_name("Bad.done").touch()

        def learnt() -> bool:
            return set(workspace.params().steps()) == {"Polyp", "Shadow"} and not taken.leftovers(root)

        self.until(learnt, process, log, 400)
        assert set(read_r_matrix(workspace.places.r_matrix)["domain"]) == {"Polyp", "Shadow"}
        (rejected,) = (root / "data" / "rejected").iterdir()
        assert "the image has no mask" in (rejected / "report.md").read_text()

    def test_an_event_starts_an_arrival(
        self, served: tuple[Workspace, subprocess.Popen[str]], drawn: Path, tmp_path: Path
    ) -> None:
        workspace, process = served
        root, log = workspace.root, tmp_path / "deploy.log"
        self.until(lambda: (root / ".samcl" / "inbox.json").is_file(), process, log, 200)
        url = json.loads((root / ".samcl" / "prefect" / "server.json").read_text())["url"]
        # No `format` and no `label`: what an event does not say is found out.
        code = (
            "from prefect.events import emit_event\n"
            "from prefect.events.worker import EventsWorker\n"
            f"emit_event('samcl.domain.arrived', resource={{'prefect.resource.id': 'samcl.domain.Photos'}},"
            f" payload={{'path': {str(drawn / 'natural')!r}, 'domain': 'Photos', 'role': 'natural'}})\n"
            "EventsWorker.drain_all(timeout=30)\n"
        )
        environment = os.environ | {"PREFECT_API_URL": url, "NO_PROXY": "127.0.0.1,localhost"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=120)
        self.until(lambda: "Photos" in workspace.params().domains, process, log, 200)
        self.until(lambda: not taken.leftovers(root), process, log, 200)
        assert workspace.params().domains["Photos"].role == "natural"
        assert (drawn / "natural").is_dir()
