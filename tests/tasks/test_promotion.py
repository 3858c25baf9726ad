"""Promotion and rollback on a real MLflow database: the alias, the tags, the page, the ledger, and what clients get."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.cli.main import run
from samcl_core.bank import Bank
from samcl_core.config import Params
from samcl_core.errors import IntegrityError, SamclError, UsageError
from samcl_core.files import digest_files
from tasks import promotion
from tasks.ledger import FILE, read_ledger
from tasks.promotion import Decision, decide, refuse_unreachable, rollback
from tasks.registry import RegistryUnavailable, aliases, load_registered, model_name, read_version, register_bank
from tasks.serving.package import BANK_FOLDER
from tasks.tracking import open_tracker

pytestmark = pytest.mark.pipeline


def _case() -> ModuleType:
    path = Path(__file__).parents[1] / "promotion_case.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASE = _case()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A workspace whose two banks are registered and not decided on."""
    root = tmp_path_factory.mktemp("promotion") / "W"
    params = CASE.fill(root)
    MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}").search_experiments()
    return root, params


@pytest.fixture
def workspace(source: tuple[Path, Params], tmp_path: Path) -> tuple[Path, Params]:
    """A copy in which version 1 is the first bank and version 2 the second."""
    root = tmp_path / "W"
    shutil.copytree(source[0], root)
    for step in ("Polyps", "Shadows"):
        register_bank(root, source[1], step)
    return root, source[1]


def standing(root: Path) -> dict[str, str]:
    with open_tracker(root) as tracker:
        return aliases(tracker)


def tags(root: Path, version: str) -> dict[str, str]:
    with open_tracker(root) as tracker:
        return read_version(tracker, version).tags


def failed(decision: Decision) -> list[str]:
    return [gate.name for gate in decision.gates if not gate.passed]


def auto(root: Path, params: Params, version: str) -> Decision:
    return decide(root, params, version, actor="flow run 7", is_automatic=True)


def samcl(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_from_the_first_champion_to_the_second_and_back(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    first = auto(root, params, "1")
    assert (first.promoted, first.champion, failed(first)) == (True, None, [])
    second = decide(root, params, actor="me@here")
    assert (second.version, second.promoted, second.champion) == ("2", True, "1")
    assert standing(root) == {"candidate": "2", "champion": "2"}
    found = tags(root, "2")
    assert found["samcl.decision"] == "promoted"
    assert found["samcl.decided_by"] == "me@here"
    assert found["samcl.gate.max_drop"].startswith("passed: worst is Polyps 0.8000, the champion 0.8000")
    assert found["samcl.gate.better_than_zero_shot"].startswith("passed: Shadows 0.9000, zero-shot 0.2000")
    with open_tracker(root) as tracker:
        run_id = read_version(tracker, "2").run_id
        page = Path(tracker.client.download_artifacts(run_id, "promotion/version-2.md", str(root))).read_text()
    assert page == second.markdown()
    assert "# samcl-bank version 2: promoted to champion" in page
    assert "| max_drop | passed | 0.0000 | drop <= 0.01 |" in page

    assert Bank.load(load_registered(root)).names == ("Polyps", "Shadows")
    files = digest_files(root / "banks")
    back = rollback(root, reason="worse in the clinic", actor="me@here")
    assert (back.version, standing(root)) == ("1", {"candidate": "2", "champion": "1"})
    assert digest_files(load_registered(root)) == digest_files(root / "banks" / "Polyps")
    assert digest_files(root / "banks") == files
    assert "worse in the clinic" in tags(root, "2")["samcl.rolled_back"]
    assert tags(root, "1")["samcl.decision"] == "rolled back to"

    again = auto(root, params, "2")
    assert (again.promoted, failed(again)) == (False, ["rolled_back"])
    assert "worse in the clinic; next: samcl promote 2" in again.gates[-1].reason
    person = decide(root, params, "2", actor="me@here", reason="the clinic was wrong")
    assert (person.promoted, person.forced) == (True, False)
    assert "samcl.gate.rolled_back" not in tags(root, "2")

    ledger = read_ledger(root)
    assert ledger.problems == ()
    moves = [(entry.action, entry.version, entry.actor) for entry in ledger.entries]
    assert moves == [
        ("promote", "1", "flow run 7"),
        ("promote", "2", "me@here"),
        ("rollback", "1", "me@here"),
        ("refuse", "2", "flow run 7"),
        ("promote", "2", "me@here"),
    ]
    assert ledger.entries[-1].reason == "the clinic was wrong (every gate passed)"
    assert ledger.entries[-1].bank == Bank.load(root / "banks" / "Shadows").digest


def test_a_worse_bank_stays_candidate_unless_it_is_forced_with_a_reason(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    CASE.score(
        root, "Shadows", {"Polyps": 0.7, "Shadows": 0.1, "Scenes": 0.6}, zero_shot={"Shadows": 0.2}, selector=0.5
    )
    decision = auto(root, params, "2")
    names = ["max_drop", "max_natural_drop", "min_selector_accuracy", "better_than_zero_shot"]
    assert (decision.promoted, failed(decision)) == (False, names)
    assert decision.reason == f"failed: {', '.join(names)}"
    assert standing(root) == {"candidate": "2", "champion": "1"}
    assert tags(root, "2")["samcl.gate.max_natural_drop"].startswith("failed: Scenes 0.6000, the champion 0.7000")
    assert "not promoted" in decision.markdown()
    with pytest.raises(UsageError, match="by force needs a reason"):
        decide(root, params, "2", actor="me", force=True, reason=" ")
    forced = decide(root, params, "2", actor="me", force=True, reason="a demo tomorrow")
    assert (forced.promoted, forced.forced, forced.word) == (True, True, "forced")
    assert forced.reason.startswith("a demo tomorrow (failed: max_drop, ")
    assert standing(root)["champion"] == "2"
    entry = read_ledger(root).entries[-1]
    assert (entry.action, entry.forced, len(entry.gates)) == ("promote", True, 4)


def test_a_champion_stays_champion_without_a_word(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    before = (root / FILE).read_bytes()
    again = auto(root, params, "1")
    assert (again.promoted, again.is_new, again.gates) == (True, False, ())
    assert (root / FILE).read_bytes() == before


def test_other_test_data_and_scores_of_another_bank_fail_and_say_what_to_do(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    CASE.score(root, "Shadows", CASE.BETTER, zero_shot={"Shadows": 0.2}, digests={"Polyps": "d" * 64})
    decision = auto(root, params, "2")
    assert failed(decision) == ["max_drop", "max_natural_drop"]
    reason = decision.gates[0].reason
    assert "the champion (version 1) has no scores on the present test data: " in reason
    assert "; next: " in reason
    (root / "metrics" / "steps" / "Shadows.parquet").unlink()
    decision = auto(root, params, "2")
    assert set(failed(decision)) == {gate.name for gate in decision.gates}
    assert "the candidate (version 2) has no scores" in decision.gates[2].reason
    assert standing(root)["champion"] == "1"


def test_a_domain_with_new_training_data_must_beat_zero_shot_again(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    with open_tracker(root) as tracker:
        tracker.client.set_model_version_tag(model_name(), "1", "data.Polyps", "e" * 64)
    decision = auto(root, params, "2")
    assert decision.gates[3].reason.startswith("Polyps 0.8000, zero-shot 0.3000")


def test_a_registry_that_does_not_answer_promotes_nothing(
    workspace: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = workspace
    with socket.socket() as probe, monkeypatch.context() as patch:
        probe.bind(("127.0.0.1", 0))
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(RegistryUnavailable) as caught:
            auto(root, params, "1")
    decision = refuse_unreachable(root, version="1", bank="b", actor="flow run 7", error=caught.value)
    assert (decision.promoted, failed(decision)) == (False, ["registry"])
    assert "MLflow at http://127.0.0.1" in decision.gates[0].reason
    assert read_ledger(root).entries[-1].action == "refuse"
    assert "champion" not in standing(root)


def test_a_champion_moved_by_something_else_is_written_down(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    with open_tracker(root) as tracker:
        tracker.client.set_registered_model_alias(model_name(), "champion", "2")
    entry = rollback(root, reason="who did that", actor="me@here")
    assert entry.version == "1"
    observed = read_ledger(root).entries[-2]
    assert (observed.action, observed.version) == ("observe", "2")
    assert "the ledger knew version 1; the alias was moved by something else" in observed.reason


def test_a_line_lost_in_a_crash_is_found_by_the_alias(
    workspace: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = workspace

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_write_line", die)
        with pytest.raises(KeyboardInterrupt):
            auto(root, params, "1")
    assert standing(root)["champion"] == "1"
    assert auto(root, params, "1").promoted
    (entry,) = read_ledger(root).entries
    assert (entry.action, entry.version) == ("observe", "1")
    assert "tags say: promoted by flow run 7" in entry.reason


def test_a_champion_that_changes_under_the_decision_stops_it(
    workspace: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = workspace
    judged = promotion.gates_of

    def meanwhile(*given: Any) -> Any:
        with open_tracker(root) as tracker:
            tracker.client.set_registered_model_alias(model_name(), "champion", "1")
        return judged(*given)

    monkeypatch.setattr(promotion, "gates_of", meanwhile)
    with pytest.raises(SamclError, match="the champion changed from version None to 1"):
        auto(root, params, "2")
    assert standing(root)["champion"] == "1"


def test_a_changed_ledger_stops_automatic_promotion_and_guesses(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    auto(root, params, "1")
    decide(root, params, "2", actor="me", reason="x")
    lines = (root / FILE).read_bytes().splitlines(keepends=True)
    (root / FILE).write_bytes(lines[0].replace(b"every gate", b"no gate") + lines[1])
    with pytest.raises(UsageError, match=r"line 2.*cannot be trusted"):
        rollback(root, reason="y", actor="me")
    assert rollback(root, reason="y", actor="me", to="1").version == "1"
    assert failed(auto(root, params, "2")) == ["ledger", "rolled_back"]


def test_rollback_refuses_what_is_no_way_back(workspace: tuple[Path, Params]) -> None:
    root, params = workspace
    with pytest.raises(UsageError, match="no champion to roll back from"):
        rollback(root, reason="x", actor="me")
    auto(root, params, "1")
    with pytest.raises(UsageError, match="needs a reason"):
        rollback(root, reason=" ", actor="me")
    with pytest.raises(UsageError, match="no champion before this one"):
        rollback(root, reason="x", actor="me")
    for to, match in {"1": "version 1 is champion", "2": "version 2 was never champion", "9": "no version 9"}.items():
        with pytest.raises(UsageError, match=match):
            rollback(root, reason="x", actor="me", to=to)
    assert standing(root)["champion"] == "1"


def test_what_the_registry_gives_is_compared_with_its_digest(workspace: tuple[Path, Params]) -> None:
    root, _ = workspace
    folder = load_registered(root, "2")
    assert Bank.load(folder).digest == folder.name
    (folder / "bank.json").unlink()
    assert Bank.load(load_registered(root, "@candidate")).digest == folder.name, "a damaged copy is made again"
    with open_tracker(root) as tracker:
        stored = Path(read_version(tracker, "2").source.removeprefix("file://"))
    shutil.rmtree(folder)
    tensors = stored / BANK_FOLDER / "modules" / "Polyps" / "module.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(IntegrityError, match="Polyps"):
        load_registered(root, "2")
    assert not folder.exists()
    with pytest.raises(UsageError, match="no version or alias '@champion', found @candidate = 2"):
        load_registered(root)


def test_the_commands(workspace: tuple[Path, Params], capsys: pytest.CaptureFixture[str]) -> None:
    root, params = workspace
    assert samcl(capsys, "-C", root, "bank", "history") == (0, "nothing was decided yet\n", "")
    auto(root, params, "1")
    decide(root, params, "2", actor="me@here")
    code, _, err = samcl(capsys, "-C", root, "rollback")
    assert (code, "--reason" in err) == (2, True)
    code, out, _ = samcl(capsys, "-C", root, "rollback", "--reason", "bad masks")
    assert (code, out.startswith("champion: samcl-bank version 1, bank ")) == (0, True)
    assert json.loads(samcl(capsys, "-C", root, "bank", "show", "@champion", "--json")[1])["domains"] == ["Polyps"]
    code, out, err = samcl(capsys, "-C", root, "bank", "history")
    assert (code, err) == (0, "")
    assert "rollback" in out and "bad masks" in out and "flow run 7" in out
    assert out.splitlines()[-1].startswith("champion: samcl-bank version 1, bank ")
    values = json.loads(samcl(capsys, "-C", root, "bank", "history", "--json")[1])
    assert [reign["version"] for reign in values["champions"]] == ["1", "2", "1"]
    assert [entry["action"] for entry in values["entries"]] == ["promote", "promote", "rollback"]
    with (root / FILE).open("ab") as stream:
        stream.write(b"{")
    code, _, err = samcl(capsys, "-C", root, "bank", "history")
    assert (code, "was never finished" in err) == (0, True)
    (root / FILE).write_bytes((root / FILE).read_bytes().replace(b"flow run 7", b"nobody"))
    code, _, err = samcl(capsys, "-C", root, "bank", "history")
    assert (code, f"{FILE} line 2: does not follow" in err) == (1, True)
    assert samcl(capsys, "-C", root, "promote", "2", "--force")[0] == 2
