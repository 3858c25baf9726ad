"""A service answers what the segmenter predicts, in one pass, from threads, or says which weights are missing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samcl_core.backbones import tiny_backbone
from samcl_core.errors import BackboneMismatch, CheckpointMismatch, CheckpointMissing, IntegrityError, UsageError
from samcl_core.files import sha256_file
from samcl_core.inference import Prompt, Segmenter
from samcl_core.masks import mask_from_rle
from samcl_core.serving import BackboneReference, Service, mask_from_png


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, load_file: Callable[[Path], ModuleType]) -> Path:
    root = tmp_path_factory.mktemp("serving")
    load_file(Path(__file__).parents[2] / "filled_workspace.py").fill(root)
    return root / "banks" / "Shadows"


@pytest.fixture(scope="module")
def service(bank: Path) -> Service:
    return Service.load(bank, BackboneReference("tiny", tiny_backbone().sha256), device="cpu")


def images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (30 + row, 50, 3), dtype=np.uint8) for row in range(count)]


def rows(count: int) -> list[dict[str, Any]]:
    modules = ("Polyps", "Shadows", "plain", "auto")
    return [
        {"image_array": image, "points": [[10, 20], [3, 4]], "labels": [1, 0], "module": modules[row % 4]}
        for row, image in enumerate(images(count))
    ]


def test_answers_are_the_segmenters(service: Service) -> None:
    asked = rows(4)
    prompts = [
        Prompt(tuple((x * 1024 / 50, y * 1024 / (30 + row)) for x, y in ((10, 20), (3, 4))), (1, 0)) for row in range(4)
    ]
    expected = service.segmenter.predict(images(4), prompts, [row["module"] for row in asked])
    found, lengths = service.answer(asked), service.answer(asked, mask_format="rle")
    for answer, length, wanted in zip(found, lengths, expected, strict=True):
        np.testing.assert_array_equal(mask_from_png(answer["mask"]), wanted.mask)
        np.testing.assert_array_equal(mask_from_rle(length["mask"]), wanted.mask)
        assert (answer["score"], answer["module"]) == (wanted.score, wanted.module)
        assert (answer["confidence"], answer["novelty"]) == (wanted.confidence, wanted.novelty)
        assert (answer["height"], answer["width"]) == wanted.mask.shape
    assert [answer["module"] for answer in found[:3]] == ["Polyps", "Shadows", "plain"]


def test_mixed_domains_are_one_pass(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    suffix = service.segmenter.backbone.suffix

    def count(prefix: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(prefix))
        return suffix(prefix, *rest, **more)

    monkeypatch.setattr(service.segmenter.backbone, "suffix", count)
    service.answer(rows(8))
    assert sizes == [8]
    service.answer(rows(8), batch_size=3)
    assert sizes[1:] == [3, 3, 2]


def test_threads_get_what_one_caller_gets(service: Service) -> None:
    asked = [rows(4)[start : start + 2] for start in (0, 2)] * 3
    alone = [service.answer(part) for part in asked]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(service.answer, asked)) == alone


def test_one_wrong_row_refuses_all(service: Service) -> None:
    asked = rows(3)
    asked[2]["labels"] = [1]
    with pytest.raises(UsageError, match=r"row 2: 2 point\(s\) but 1 label\(s\)"):
        service.answer(asked)


def test_wrong_options_and_no_rows(service: Service) -> None:
    with pytest.raises(UsageError, match="mask_format is 'gif', expected one of"):
        service.answer(rows(1), mask_format="gif")
    with pytest.raises(UsageError, match="batch_size is 0, expected 1 to 64"):
        service.answer(rows(1), batch_size=0)
    assert service.answer([]) == []


def test_a_bank_without_modules_answers_plainly(bank: Path) -> None:
    reference = BackboneReference("tiny", tiny_backbone().sha256)
    base = Service.load(bank.with_name("base"), reference, device="cpu")
    assert [answer["module"] for answer in base.answer([{**rows(1)[0], "module": "auto"}])] == ["plain"]


def test_infinite_novelty_stays_json() -> None:
    class Far(Segmenter):
        def _choose(self, embedding: Any) -> Any:
            rows, confidence, novelty = super()._choose(embedding)
            return rows, confidence, novelty + float("inf")

    answer = Service(Far(tiny_backbone())).answer([{**rows(1)[0], "module": "auto"}])[0]
    assert answer["novelty"] == 1e6


class TestWeights:
    def test_a_damaged_bank_and_another_backbone_are_refused(self, bank: Path, tmp_path: Path) -> None:
        with pytest.raises(BackboneMismatch, match="0" * 64):
            Service.load(bank, BackboneReference("tiny", "0" * 64))
        import shutil

        shutil.copytree(bank, tmp_path / "bank")
        (tmp_path / "bank" / "selector" / "state.safetensors").unlink()
        with pytest.raises(IntegrityError, match=r"state\.safetensors is missing"):
            Service.load(tmp_path / "bank", BackboneReference("tiny", tiny_backbone().sha256))

    def test_weights_that_are_not_here_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path))
        with pytest.raises(CheckpointMissing) as official:
            BackboneReference("sam_vit_b", "1" * 64).load("cpu")
        assert official.value.hint == "samcl checkpoints fetch sam_vit_b"
        with pytest.raises(CheckpointMissing, match=rf"\(sha256 {'1' * 64}\) are not at .*own\.safetensors") as own:
            BackboneReference("sam_nano", "1" * 64, "own.safetensors").load("cpu")
        assert "SAMCL_BACKBONE_CHECKPOINT=FILE" in own.value.hint

    def test_other_weights_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(CheckpointMismatch, match=f"expected {'1' * 64}"):
            BackboneReference("tiny", "1" * 64).load("cpu")
        other = tmp_path / "other.safetensors"
        other.write_bytes(b"not these")
        monkeypatch.setenv("SAMCL_BACKBONE_CHECKPOINT", str(other))
        with pytest.raises(CheckpointMismatch, match=f"sha256 {sha256_file(other)}, expected {'1' * 64}"):
            BackboneReference("sam_nano", "1" * 64).load("cpu")
