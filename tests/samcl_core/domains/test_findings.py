"""Findings: one order, whole through JSON, names of files shown as they are."""

from __future__ import annotations

import json
import random

import pytest

from samcl_core.domains.findings import Finding, findings_from_json, findings_to_json, printable, sort_findings
from samcl_core.errors import DataError

FOUND = [
    Finding("mask.empty", "error", ("b.png",), "the mask is empty"),
    Finding("mask.size", "error", ("a.png", "b.png"), "the mask is 3x4 pixels, the image 4x4"),
    Finding("image.flat", "warning", ("\udcff\n\u202e.png",), "contrast 0"),
    Finding("image.near_duplicate", "info", (), "near-duplicates"),
]


def test_the_worst_come_first_whatever_the_order() -> None:
    shuffled = FOUND * 2
    random.Random(0).shuffle(shuffled)
    assert sort_findings(shuffled) == FOUND


def test_json_brings_them_back() -> None:
    text = json.dumps(findings_to_json(reversed(FOUND)))
    assert findings_from_json(json.loads(text)) == FOUND


@pytest.mark.parametrize(
    "change", [{"severity": "bad"}, {"files": "a.png"}, {"files": [1]}, {"message": None}, {"check": 3}]
)
def test_what_is_no_finding_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="is no finding"):
        findings_from_json([{**FOUND[0].as_json(), **change}])


def test_names_are_shown_without_what_would_deceive() -> None:
    assert printable("Zürich 図 1.png") == "Zürich 図 1.png"
    assert printable("a\n\x1b[31m\u202egnp.\udcff") == "a\\n\\x1b[31m\\u202egnp.\\udcff"
