"""The command line without a flow: help, errors and exit codes, single steps, banks, predictions, registration."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli.board import Board
from flows.cli.main import app
from flows.cli.output import StepProgress, brief
from flows.cli.predict import parse_box, parse_point, to_prompt
from flows.cli.sources import domain_name, resolve_sources
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import PromptError, UsageError
from samcl_core.stages import STAGES

pytestmark = pytest.mark.pipeline

HEAVY = ("torch", "prefect", "mlflow", "pandas", "numpy", "cv2")
Samcl = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two banks that were made directly."""
    path = Path(__file__).parents[1] / "filled_workspace.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("cli") / "W"
    module.fill(root)
    return root


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is wider than high, so that x and y cannot be mixed up unseen."""
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    found += [(str(command.name),) for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        inner = [command.name or command.callback.__name__ for command in group.typer_instance.registered_commands]  # type: ignore[union-attr]
        found += [(str(group.name),), *((str(group.name), name) for name in inner)]
    return found


class TestHelp:
    @pytest.mark.parametrize("words", commands(), ids=" ".join)
    def test_every_command_explains_itself(self, samcl: Samcl, words: tuple[str, ...]) -> None:
        code, out, err = samcl(*words, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: {' '.join(('samcl', *words))}")

    def test_the_promised_commands_are_there(self) -> None:
        names = {" ".join(words) for words in commands()}
        assert names >= {"init", "ingest", "arrive", "stream", "evaluate", "register", "predict", "step", "demo"}
        assert names >= {"bank show", "bank verify", "bank history", "bank import-samcl", "bank export"}
        assert names >= {"promote", "rollback", "reproduce", "bank of"}
        assert names >= {"checkpoints list", "checkpoints fetch", "checkpoints hash"}

    @pytest.mark.parametrize("words", [["--help"], ["step", "--help"], ["stream", "--help"]], ids=" ".join)
    def test_help_imports_nothing_heavy(self, words: list[str]) -> None:
        program = (
            "import sys\n"
            "from flows.cli.main import run\n"
            "try:\n    run(sys.argv[1:])\n"
            "except SystemExit:\n    pass\n"
            f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
        )
        assert python(program, *words).stdout.endswith("heavy: []\n")

    def test_help_costs_little_more_than_python_with_typer(self) -> None:
        def seconds(program: str) -> float:
            started = time.monotonic()
            python(program)
            return time.monotonic() - started

        bare = min(seconds("import typer, typer.main") for _ in range(3))
        ours = min(seconds("from flows.cli.main import run; run(['--help'])") for _ in range(3))
        assert ours < max(0.5, 4 * bare)

    def test_version(self, samcl: Samcl) -> None:
        assert samcl("--version") == (0, "samcl 0.1.0\n", "")


class TestErrors:
    def test_no_command_shows_the_help(self, samcl: Samcl) -> None:
        code, out, _ = samcl()
        assert code == 2
        assert "Usage: samcl" in out

    def test_wrong_usage_is_one_message_and_the_next_command(self, samcl: Samcl) -> None:
        assert samcl("stepp")[0] == 2
        code, out, err = samcl("step")
        assert (code, out) == (2, "")
        assert re.fullmatch(r"error: Missing argument .*\nnext: samcl step --help\n", err)
        code, _, err = samcl("stream", "--nonsense")
        assert code == 2
        assert err.startswith("error: No such option: --nonsense")

    def test_no_workspace(self, samcl: Samcl, tmp_path: Path) -> None:
        code, _, err = samcl("-C", tmp_path, "stream")
        assert code == 2
        assert err.startswith(f"error: no workspace at {tmp_path}")
        assert err.endswith("next: samcl init\n")

    def test_every_problem_of_the_settings_is_listed(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        (tmp_path / "dvc.yaml").touch()
        (tmp_path / "params.yaml").write_text("seed: x\nnonsense: 1\n")
        code, _, err = samcl("-C", tmp_path, "step", "report")
        assert code == 2
        assert err.count("\n  - ") == 2
        assert "Traceback" not in err

    def test_a_bug_is_one_line_unless_asked_for_more(
        self, samcl: Samcl, filled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("flows.cli.steps._newest_bank", broken)
        code, _, err = samcl("-C", filled, "register")
        assert code == 1
        assert err == f"error: ZeroDivisionError: a bug\nnext: samcl --debug -C {filled} register\n"
        code, _, err = samcl("-C", filled, "register", "--debug")
        assert code == 1
        assert "Traceback" in err
        assert err.count("--debug") == 1

    def test_an_interrupt_is_130(self, samcl: Samcl, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("flows.cli.steps._newest_bank", interrupted)
        code, _, err = samcl("-C", filled, "register")
        assert code == 130
        assert "interrupted" in err

    def test_a_reader_that_went_away_is_no_error(self, filled: Path) -> None:
        line = f"{sys.executable} -m flows.cli -C {filled} bank show --json | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


class TestStep:
    def test_every_stage_of_the_graph_is_known(self, samcl: Samcl, filled: Path) -> None:
        for stage in STAGES:
            _, _, err = samcl("-C", filled, "step", stage, "Nobody")
            assert "Nobody" in err
        code, _, err = samcl("-C", filled, "step", "fly")
        assert code == 2
        assert err.startswith("error: stage is 'fly', expected one of ['ingest'")

    def test_a_domain_must_be_one_of_the_stage(self, samcl: Samcl, filled: Path) -> None:
        code, _, err = samcl("-C", filled, "step", "train", "Scenes")
        assert code == 2
        assert "domain 'Scenes' is not under modules in params.yaml, expected one of ['Polyps', 'Shadows']" in err
        assert "needs a domain" in samcl("-C", filled, "step", "ingest")[2]

    def test_code_that_is_not_the_recorded_one_is_refused(self, samcl: Samcl, filled: Path) -> None:
        (filled / "code.yaml").unlink(missing_ok=True)
        code, _, err = samcl("-C", filled, "step", "report")
        assert code == 2
        assert err.endswith("next: samcl init --refresh\n")

    def test_a_step_prints_one_line(self, samcl: Samcl, filled: Path) -> None:
        assert samcl("-C", filled, "init", "--refresh")[0] == 0
        code, out, _ = samcl("-C", filled, "step", "report")
        assert code == 0
        assert re.fullmatch(r"report: .*iou/samcl_aa=0\.825 .*\(\d+\.\d s\)\n", out)
        values = json.loads(samcl("-C", filled, "step", "report", "--json")[1])
        assert values["stage"] == "report"
        assert values["summary"]["iou/samcl_aa"] == pytest.approx(0.825)

    def test_torchrun_is_for_training(self, samcl: Samcl, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert samcl("-C", filled, "init", "--refresh")[0] == 0
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        code, _, err = samcl("-C", filled, "step", "report")
        assert code == 2
        assert err == "error: step report runs in one process, found torchrun\nnext: samcl step report\n"

    @pytest.mark.slow
    def test_torchrun_trains_one_module(self, samcl: Samcl, tmp_path: Path) -> None:
        write_domain(tmp_path / "data" / "raw" / "Polyps", "polyp", 5, 2, 64, 0)
        (tmp_path / "dvc.yaml").touch()
        (tmp_path / "params.yaml").write_text(
            "backbone: {name: tiny}\ntrain: {epochs: 2, batch_size: 4}\ndomains: {Polyps: {}}\nmodules: {Polyps: {}}\n"
        )
        assert samcl("-C", tmp_path, "init", "--refresh")[0] == 0
        for stage in ("ingest", "points"):
            assert samcl("-C", tmp_path, "step", stage, "Polyps")[0] == 0
        group = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*group, "-m", "flows.cli", "-C", str(tmp_path), "step", "train", "Polyps"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("train Polyps: module=") == 1, "one of the processes speaks"
        assert (tmp_path / "modules" / "Polyps" / "module.safetensors").is_file()

    def test_data_steps_do_without_torch(self, samcl: Samcl, tmp_path: Path) -> None:
        write_domain(tmp_path / "data" / "raw" / "Polyps", "polyp", 3, 2, 64, 0)
        (tmp_path / "dvc.yaml").touch()
        (tmp_path / "params.yaml").write_text("domains: {Polyps: {}}\nmodules: {Polyps: {}}\n")
        assert samcl("-C", tmp_path, "init", "--refresh")[0] == 0
        program = (
            "import sys\n"
            "from flows.cli.main import run\n"
            "for stage in ('ingest', 'points'):\n"
            "    try:\n        run(['-C', sys.argv[1], 'step', stage, 'Polyps'])\n"
            "    except SystemExit as exc:\n        assert not exc.code, exc.code\n"
            "print([name for name in ('torch', 'prefect', 'mlflow') if name in sys.modules])"
        )
        done = python(program, str(tmp_path))
        assert done.stdout.splitlines()[-1] == "[]", done.stderr
        assert "ingest Polyps: format=samcl num_train=3 num_val=0 num_test=2 num_quarantined=0" in done.stdout
        assert (tmp_path / "data" / "Polyps" / "train" / "masks" / "points.json").is_file()


class TestProgress:
    def test_lines_are_throttled_and_end_with_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "progress.jsonl"
        monkeypatch.setenv("SAMCL_PROGRESS_FILE", str(file))
        with StepProgress("train X") as progress:
            for done in range(1, 1001):
                progress("training", done, 1000)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines[0] == {"what": "training", "done": 1, "total": 1000}
        assert lines[-1] == {"what": "training", "done": 1000, "total": 1000}
        assert len(lines) < 20

    def test_a_file_that_cannot_be_written_stops_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMCL_PROGRESS_FILE", str(tmp_path))
        with StepProgress("train X") as progress:
            progress("training", 1, 1)

    def test_a_short_step_is_silent_off_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SAMCL_PROGRESS_FILE", raising=False)
        with StepProgress("train X") as progress:
            progress("training", 1, 2)
            progress("training", 2, 2)
        assert capsys.readouterr() == ("", "")

    def test_the_board_says_how_each_stage_ended(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fail(_: object) -> str:
            raise OSError("full")

        with Board() as board:
            board.run("train@A", lambda progress: progress("x", 1, 2) or "ran")
            board.run("bank@A", lambda _: "skipped")
            with pytest.raises(OSError, match="full"):
                board.run("evaluate@A", fail)
        assert board.outcomes == {"train@A": "ran", "bank@A": "skipped", "evaluate@A": "failed"}
        assert set(board.values()["train@A"]) == {"outcome", "seconds"}
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[:2] for line in lines] == [["train@A", "ran"], ["bank@A", "up"], ["evaluate@A", "FAILED"]]

    def test_summaries_are_short(self) -> None:
        text = brief({"bank": "0" * 64, "loss": 1 / 3, "domains": ["A", "B"], "scores": {"A@1": 0.5}, "none": []})
        assert text == "bank=000000000000 loss=0.3333 domains=A,B scores={A@1: 0.5} none=none"


class TestSources:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b-Shadow", "Polyp", "COCO", "other"):
            for kind in ("images", "masks"):
                (tmp_path / "data" / name / "train" / kind).mkdir(parents=True)
        (tmp_path / "notes").mkdir()
        return tmp_path

    def test_a_folder_of_domains_is_taken_by_name_with_natural_images_first(self, folder: Path) -> None:
        found = resolve_sources([folder / "data"])
        assert [(source.domain, source.role) for source in found] == [
            ("COCO", "natural"),
            ("Polyp", "learn"),
            ("b-Shadow", "learn"),
            ("other", "learn"),
        ]
        assert found[0].is_guessed
        assert found[0].path == folder / "data" / "COCO"
        assert resolve_sources([folder]) == found

    def test_options_decide(self, folder: Path) -> None:
        found = resolve_sources(
            [folder / "data"], natural=["none"], unseen=["other"], order=["b-Shadow", "COCO", "Polyp"]
        )
        assert [(source.domain, source.role) for source in found] == [
            ("other", "unseen"),
            ("b-Shadow", "learn"),
            ("COCO", "learn"),
            ("Polyp", "learn"),
        ]
        declared = resolve_sources([folder / "data"], declared={"other": "unseen", "COCO": "learn"})
        assert {source.domain: source.role for source in declared}["COCO"] == "learn"
        assert declared[0].domain == "other"
        paths = [folder / "data" / name for name in ("other", "Polyp")]
        assert [source.domain for source in resolve_sources(paths)] == ["other", "Polyp"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"order": ["Polyp"]}, r"--order is \['Polyp'\], expected each of"),
            ({"unseen": ["Nobody"]}, "no folder is called 'Nobody'"),
        ],
    )
    def test_names_that_do_not_fit_are_refused(self, folder: Path, options: dict[str, list[str]], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            resolve_sources([folder / "data"], **options)  # type: ignore[arg-type]

    def test_folders_without_data_are_refused(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="holds no data set"):
            resolve_sources([folder / "notes"])
        with pytest.raises(UsageError, match="is not a folder"):
            resolve_sources([folder / "nowhere"])
        with pytest.raises(UsageError, match="'Polyp' comes twice"):
            resolve_sources([folder / "data", folder / "data" / "Polyp"])

    def test_names_are_made_from_folder_names(self) -> None:
        assert domain_name("My rails (2024)") == "My_rails_2024"
        assert domain_name("natural") == "natural_images"
        with pytest.raises(UsageError, match="cannot name a domain"):
            domain_name("???")

    def test_an_archive_is_looked_at_like_its_folder(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        write_domain(tmp_path / "Cracks", "crack", 4, 2, 48, 0)
        (tmp_path / "Cracks" / "domain.yaml").write_text("val: 0.25\n")
        packed = Path(shutil.make_archive(str(tmp_path / "Cracks-v2"), "zip", tmp_path, "Cracks"))
        values = json.loads(samcl("-C", filled, "ingest", packed, "--dry-run", "--json", "--set", "max_samples=2")[1])
        assert values["domain"] == "Cracks-v2"
        assert [values[f"num_{split}"] for split in ("train", "val", "test")] == [2, 1, 2]
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr("../outside.png", b"x")
        code, _, err = samcl("-C", filled, "ingest", packed, "--dry-run")
        assert code == 1 and "outside.png" in err and not (tmp_path / "outside.png").exists()
        code, _, err = samcl("-C", filled, "ingest", tmp_path / "absent", "--dry-run")
        assert code == 2 and "is neither a folder nor an archive" in err

    def test_a_dry_run_looks_and_writes_nothing(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        source = tmp_path / "Rails"
        write_domain(source, "polyp", 4, 2, 64, 0)
        (source / "train" / "images" / "polyp_0000.png").write_bytes(b"no image")
        before = sorted(filled.rglob("*"))
        values = json.loads(samcl("-C", filled, "ingest", source, "--dry-run", "--json")[1])
        assert {key: values[key] for key in ("domain", "format", "num_train", "num_test", "num_quarantined")} == {
            "domain": "Rails",
            "format": "samcl",
            "num_train": 3,
            "num_test": 2,
            "num_quarantined": 1,
        }
        assert list(values["reasons"]) == ["train/images/polyp_0000.png"]
        assert sorted(filled.rglob("*")) == before


class TestBank:
    def test_show(self, samcl: Samcl, filled: Path) -> None:
        code, out, _ = samcl("-C", filled, "bank", "show")
        assert code == 0
        assert re.search(r"^backbone tiny [0-9a-f]{64}$", out, re.MULTILINE)
        assert re.search(r"2 +Shadows +augmodule", out)
        values = json.loads(samcl("-C", filled, "bank", "show", "Polyps", "--json")[1])
        assert values["domains"] == ["Polyps"]
        assert values["folder"] == str(filled / "banks" / "Polyps")
        assert json.loads(samcl("bank", "show", filled / "banks" / "Polyps", "--json")[1]) == values

    def test_verify(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        import shutil

        assert samcl("-C", filled, "bank", "verify")[0] == 0
        broken = tmp_path / "broken"
        shutil.copytree(filled / "banks" / "Shadows", broken)
        (broken / "modules" / "Polyps" / "module.json").write_text("{}")
        code, _, err = samcl("bank", "verify", broken)
        assert code == 1
        assert err.startswith(f"error: {broken}: 1 problem(s)\n  - ")
        code, out, _ = samcl("bank", "verify", broken, "--json")
        assert code == 1
        assert json.loads(out)["is_whole"] is False

    def test_a_bank_that_is_not_there(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        code, _, err = samcl("-C", filled, "bank", "show", "Rails")
        assert code == 2
        assert "'Rails' is neither a bank folder nor a step" in err
        assert "['base', 'Polyps', 'Shadows']" in err
        assert samcl("-C", tmp_path, "bank", "show")[0] == 2

    def test_export_and_import_again(self, samcl: Samcl, filled: Path, tmp_path: Path) -> None:
        out = tmp_path / "published"
        code, said, _ = samcl("-C", filled, "bank", "export", out)
        assert code == 0
        assert "not in this format" in said
        assert {path.name for path in out.glob("*.pth")} >= {"Polyps.pth", "Shadows.pth"}
        assert samcl("-C", filled, "bank", "export", out)[2].startswith(f"error: {out} exists")
        assert samcl("-C", filled, "bank", "export", tmp_path / "x", "--format", "zip")[0] == 2

    def test_importing_needs_a_known_model(self, samcl: Samcl, tmp_path: Path) -> None:
        code, _, err = samcl("bank", "import-samcl", tmp_path, tmp_path / "out", "--backbone", "mine")
        assert code == 2, err
        assert "--backbone-sha256" in err
        code, _, err = samcl("bank", "import-samcl", tmp_path, tmp_path / "out")
        assert code == 1
        assert f"{tmp_path} holds no <domain>.pth" in err
        assert not (tmp_path / "out").exists()


class TestPredict:
    def test_a_mask_an_overlay_and_the_choice(self, samcl: Samcl, filled: Path, picture: Path, tmp_path: Path) -> None:
        out = tmp_path / "mask.png"
        code, said, err = samcl("-C", filled, "predict", picture, "--point", "70,30", "--point", "1,1,0", "--out", out)
        assert code == 0
        assert re.search(r"^module: \w+ \(chosen, confidence \d+%", said)
        assert "untrained" in err
        mask = np.asarray(Image.open(out))
        assert mask.shape == (40, 80)
        assert set(np.unique(mask)) <= {0, 255}
        with Image.open(tmp_path / "mask_overlay.png") as overlay:
            assert overlay.size == (80, 40)

    def test_a_named_module_a_box_and_json(self, samcl: Samcl, filled: Path, picture: Path, tmp_path: Path) -> None:
        arguments = ("--box", "10,10,60,30", "--out", tmp_path / "m.png", "--json", "--module", "Shadows")
        values = json.loads(samcl("-C", filled, "predict", picture, *arguments)[1])
        assert (values["module"], values["is_chosen"], values["confidence"]) == ("Shadows", False, 1.0)
        bank = filled / "banks" / "Shadows"
        outside = json.loads(samcl("-C", tmp_path, "predict", picture, *arguments, "--bank", bank)[1])
        assert outside["score"] == values["score"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "no prompt"),
            (("--point", "80,5"), r"point (80, 5) is outside of the image of 80 x 40 pixels"),
            (("--point", "5"), "--point is '5', expected X,Y or X,Y,LABEL"),
            (("--box", "5,5,5,9"), "--box is '5,5,5,9'"),
            (("--point", "1,1", "--module", "Rails"), "module 'Rails', expected 'auto' or one of"),
            (("--point", "1,1", "--out", "mask.jpg"), "expected a .png file"),
            (("--point", "1,1", "--out", "/nowhere/mask.png"), "folder /nowhere does not exist"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self,
        samcl: Samcl,
        filled: Path,
        picture: Path,
        arguments: tuple[str, ...],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, err = samcl("-C", filled, "predict", picture, *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert list(tmp_path.iterdir()) == []

    def test_pixels_become_the_frame_of_the_models(self) -> None:
        prompt = to_prompt([(40, 10, 1), (0, 39, 0)], (0, 0, 80, 40), width=80, height=40)
        assert prompt.points == ((512.0, 256.0), (0.0, pytest.approx(998.4)))
        assert prompt.labels == (1, 0)
        assert prompt.box == (0.0, 0.0, 1024.0, 1024.0)

    @pytest.mark.parametrize("text", ["", "1", "a,b", "1,2,3", "1,2,-1", "1,2,1,1", "1,2,x"])
    def test_points_that_are_none(self, text: str) -> None:
        with pytest.raises(PromptError, match=re.escape(f"--point is {text!r}")):
            parse_point(text)

    @pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "3,1,2,4"])
    def test_boxes_that_are_none(self, text: str) -> None:
        with pytest.raises(PromptError, match=re.escape(f"--box is {text!r}")):
            parse_box(text)


class TestRegister:
    def test_the_newest_bank_becomes_the_candidate_once(self, samcl: Samcl, filled: Path) -> None:
        first = json.loads(samcl("-C", filled, "register", "--json")[1])
        assert first["created"] is True
        assert first["lineage"]["domains"] == ["Polyps", "Shadows"]
        code, out, err = samcl("-C", filled, "register")
        assert code == 0
        assert out.startswith(
            f"bank {first['digest'][:12]} (Shadows) is samcl-bank version {first['version']}, candidate"
        )
        assert "already there" in out
        assert "mlflow ui" in err

    def test_a_step_that_is_not_there(self, samcl: Samcl, filled: Path) -> None:
        code, _, err = samcl("-C", filled, "register", "Rails")
        assert code == 2
        assert "step 'Rails' is not in the stream, expected one of ['base', 'Polyps', 'Shadows']" in err

    def test_an_unreachable_registry_is_one_error(
        self, samcl: Samcl, filled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        code, out, err = samcl("-C", filled, "register")
        assert (code, out) == (1, "")
        assert err.startswith("error: MLflow at http://127.0.0.1:9: ")
        assert "samcl register" in err.splitlines()[-1]


class TestCheckpoints:
    def test_list_says_what_is_here(self, samcl: Samcl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path))
        (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"not the weights")
        values = json.loads(samcl("checkpoints", "list", "--verify", "--json")[1])
        states = {entry["name"]: entry["state"] for entry in values["checkpoints"]}
        assert len(states) == 7
        assert states["sam_vit_b"] == "damaged"
        assert states["sam2.1_hiera_tiny"] == "missing"
        assert "sam_vit_h" in samcl("checkpoints", "list")[1]

    def test_hash(self, samcl: Samcl, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")
        digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert samcl("checkpoints", "hash", tmp_path / "a")[1] == f"{digest}  {tmp_path / 'a'}\n"
        assert samcl("checkpoints", "hash", tmp_path / "b")[0] == 2

    def test_an_unknown_name(self, samcl: Samcl) -> None:
        code, _, err = samcl("checkpoints", "fetch", "sam_vit_z")
        assert code == 2
        assert "no checkpoint is called 'sam_vit_z'" in err


class TestInit:
    def test_a_workspace_once_and_again(self, samcl: Samcl, tmp_path: Path) -> None:
        folder = tmp_path / "W"
        code, out, err = samcl("init", folder)
        assert code == 0
        assert out == f"workspace {folder} (backbone sam_nano, profile default, device auto)\n"
        assert "next: samcl stream" in err
        settings = (folder / "params.yaml").read_bytes()
        assert samcl("init", folder)[0] == 0
        assert (folder / "params.yaml").read_bytes() == settings
        code, out, _ = samcl("-C", folder, "server")
        assert (code, out) == (0, "not running; commands that need one start it\n")
        code, _, err = samcl("-C", folder, "stream")
        assert code == 2
        assert "no domain yet" in err
        code, _, err = samcl("-C", folder, "remove", "Nobody", "--yes")
        assert code == 2
        assert "'Nobody'" in err

    def test_missing_weights_are_announced(self, samcl: Samcl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path / "none"))
        _, _, err = samcl("init", tmp_path / "W", "--backbone", "sam_vit_b")
        assert "samcl checkpoints fetch sam_vit_b" in err

    def test_a_backbone_that_is_not_there(self, samcl: Samcl, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert samcl("init", tmp_path / "file")[0] == 2


def test_the_environment_of_the_tests_has_no_progress_file() -> None:
    assert "SAMCL_PROGRESS_FILE" not in os.environ
