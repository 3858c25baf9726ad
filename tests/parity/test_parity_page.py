"""docs/parity.md holds every quantity for both networks, and nothing about the machine but its kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CELLS = [r"(?!quantity|---)([^|]+)", r"([^|]+)", r"(\S+)", r"(\S+)", r"([^|]+)", r"([^|]+)", r"([\d,]+)"]
ROW = re.compile(r"^\| " + r" \| ".join(CELLS) + r" \|$", re.MULTILINE)
BOTH = ("SAM ViT-B", "SAM 2.1 tiny")
OF_EACH_NETWORK = (
    "preprocessing: pixels",
    "selector embedding",
    "without a module: block outputs",
    "without a module: mask, 1024 px",
    "AugModule: heat features",
    "AugModule: block outputs",
    "AugModule: image embeddings, full pass",
    "AugModule: image embeddings, split pass",
    "AugModule: mask, 1024 px",
    "selector: logits",
    "selector training: losses",
    "released selector: logits",
    "one step: focal, dice, total",
    "one step: norm of each gradient",
    "training: loss of steps 1 to 3",
    "imported bank: predicted mask, 1024 px",
    "released files: predicted mask, 1024 px",
)
OF_BOTH = (
    "heat-map",
    "preprocessing: mask of the ground truth",
    "point sampling: points",
    "losses",
    "loss gradients: logits",
    "learning rate",
    "metrics: IoU, F1, MAE",
    "forgetting: AA, FM, FT",
)


@pytest.fixture(scope="module")
def report(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """``report.py`` beside this file."""
    return load_file(Path(__file__).with_name("report.py"))


def test_every_quantity_is_there_and_within_its_tolerance() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = {(quantity, network) for quantity, network, *_ in ROW.findall(text)}
    expected = {(quantity, network) for quantity in OF_EACH_NETWORK for network in BOTH}
    expected |= {(quantity, "both") for quantity in OF_BOTH}
    assert expected - rows == set()
    assert "are within their tolerance" in text and "exceed" not in text


def test_the_page_says_how_to_repeat_it_and_names_no_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "`python tests/parity/report.py` on a " in text
    assert re.search(r"(^|[\s`(])/[a-z]+/", text) is None, "an absolute path"
    if "CUDA" not in "".join(network for _, network, *_ in ROW.findall(text)):
        assert "not measured, needs a CUDA device" in text


def test_a_number_outside_its_tolerance_is_on_the_page(report: ModuleType) -> None:
    row = report.Row("losses", "both")
    entry = {"ours": 2.0, "recorded": 1.0, "difference": 1.0, "atol": 0.1, "rtol": 0.0, "used": 10.0, "count": 3}
    row.add({**entry, "is_within": False})
    row.add({**entry, "ours": 1.05, "difference": 0.05, "used": 0.5, "is_within": True})
    text = report.page([row], {}, ["test_losses"], "a machine", "2")
    assert "**1 of 1 quantities exceed their tolerance; failed tests: 1.**" in text
    assert "| losses | both | 2 | 1 | 1 | 1e-01 **exceeded** | 6 |" in text


def test_a_quantity_without_a_heading_is_an_error(report: ModuleType) -> None:
    assert report.section_of("selector embedding") == "Networks without a module"
    assert report.section_of("selector: logits") == "Selector"
    with pytest.raises(KeyError, match="'colour' has no heading"):
        report.section_of("colour")
