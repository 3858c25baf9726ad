"""The curve survives a stop, and a model card says what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from samcl_core.backbones.nano import NANO_WEIGHTS
from samcl_core.training.model_card import SCORES_BEGIN, SCORES_END, model_card, scores_table
from samcl_core.training.pretrain_options import PretrainOptions
from samcl_core.training.pretrain_record import Curve, provenance

PAGE = Path(__file__).parents[3] / "docs" / "pretrain.md"


def numbers(done: int) -> dict[str, float]:
    return {"loss": 10.0 - done, "iou": done / 10, "lr": done / 100}


def test_a_line_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "curve.jsonl", steps=5, every=2)
    for done in range(1, 6):
        curve(done, numbers(done))
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert lines == curve.points
    assert [(line["step"], line["loss"], line["iou"], line["lr"]) for line in lines] == [
        (2, 8.5, 0.15, 0.02),
        (4, 6.5, 0.35, 0.04),
        (5, 5.0, 0.5, 0.05),
    ]
    assert curve.seconds >= 0


def test_a_continued_curve_keeps_what_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    first = Curve(path, steps=8, every=2)
    for done in range(1, 7):
        first(done, numbers(done))
    second = Curve(path, steps=8, every=2)
    assert second.points == first.points
    for done in range(5, 9):  # the checkpoint was of step 4
        second(done, numbers(done))
    assert [point["step"] for point in second.points] == [2, 4, 6, 8]
    path.write_text("{")
    assert Curve(path, steps=8).points == []


@pytest.fixture
def about() -> dict[str, object]:
    curve = [{"step": step, "loss": 1.0, "iou": 0.5, "lr": 1e-3, "seconds": 30.0} for step in range(100, 4100, 100)]
    scores = {"natural": {"3 points": [0.7, 0.8], "1 point": [0.5, 0.5], "box": [0.75, 0.75]}}
    scores["rail"] = {kind: [0.25, 0.25] for kind in scores["natural"]}
    return provenance(
        PretrainOptions(steps=4000, guided=6000, decay=0.3),
        curve,
        scores,
        device=torch.device("cpu"),
        num_parameters=1_165_000,
        num_images=8,
        seeds=(0, 1),
    )


def test_where_weights_come_from(about: dict[str, dict[str, object]]) -> None:
    training = about["training"]
    assert training["command"] == (
        "samcl pretrain OUT --steps 4000 --batch-size 4 --objects 8 --lr 0.001 --guided 6000 --decay 0.3 --seed 0"
    )
    assert training["seconds"] == 1200
    steps = [point["step"] for point in training["curve"]]
    assert 8 <= len(steps) <= 16
    assert steps[-1] == 4000
    assert json.loads(json.dumps(about)) == about


def test_the_card_says_what_was_measured(about: dict[str, object]) -> None:
    card = model_card(about, sha256="ab" * 32, num_bytes=2_395_000)
    for text in (
        "| natural | 0.750 ± 0.071 | 0.500 ± 0.000 | 0.750 ± 0.000 |",
        "| file | `sam_nano.safetensors`, half precision, 2,395,000 bytes |",
        "| time | 20 min (1,200 s) |",
        "1,165,000 parameters",
        "4,000 of 4 scenes with 8 prompted objects each",
        "seeds 0, 1;",
        "Weakest here, with 3 points: rail (0.25), natural (0.75).",
        "ab" * 32,
    ):
        assert text in card
    assert block(card) == scores_table(about)
    assert not re.search(r"[{}]", card)


def test_the_page_shows_the_scores_of_the_shipped_weights() -> None:
    """Whoever ships other weights copies the table from their model card; without weights there is nothing to show."""
    found = block(PAGE.read_text(encoding="utf-8"))
    card = NANO_WEIGHTS.with_suffix(".md")
    if card.is_file():
        assert found == block(card.read_text(encoding="utf-8"))
    else:
        assert "no weights are shipped yet" in found


def block(text: str) -> str:
    assert text.count(SCORES_BEGIN) == text.count(SCORES_END) == 1
    return text[text.index(SCORES_BEGIN) : text.index(SCORES_END) + len(SCORES_END)]
