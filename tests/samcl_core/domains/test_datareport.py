"""The data report: its numbers, its order and bytes, and that no file name can do harm on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samcl_core.domains.checks import SampleFacts, finding
from samcl_core.domains.datareport import (
    FOREGROUND_BINS,
    DataSummary,
    Picture,
    View,
    page,
    read_report,
    summarize,
    view_loader,
    worst_pictures,
    write_report,
)
from samcl_core.domains.findings import Finding
from samcl_core.domains.manifest import QUARANTINED, Record
from samcl_core.errors import DataError, LayoutError

HOSTILE = (
    "<script>alert(1)</script>.png",
    "\"><img src=x onerror='alert(1)'>.png",
    "a\n\x1b[31m\u202egnp.exe",
    "bytes-\udcff.png",
    "&amp; </style></title>.png",
    "http://example.org/x.png",
)
VOID = {"meta", "br", "img"}


def record(name: str, split: str = "train", **changes: Any) -> Record:
    values: dict[str, Any] = {"id": f"{split}/images/{name}", "split": split, "image": f"{split}/images/{name}"}
    values |= {"width": 64, "height": 48, "foreground_frac": 0.2, "source_image": name}
    return Record(**{**values, **changes})


FINDINGS = [
    finding("mask.empty", ["bad.png"], "the mask is empty"),
    finding("mask.thin", ["a.png"], "1.0 pixels wide"),
    finding("mask.thin", ["b.png"], "2.0 pixels wide"),
    finding("classes.imbalance", [], "51 and 1"),
    finding("image.near_duplicate", ["a.png", "b.png"], "near-duplicates in train (a.png, b.png)"),
]


def summary_of(findings: list[Finding] = FINDINGS, **changes: Any) -> DataSummary:
    records = [
        record("a.png", label="crack", foreground_frac=0.0005),
        record("b.png", label="crack", width=640, height=480),
        record("b.png", label="hole", instance=1, width=640, height=480, foreground_frac=0.001),
        record("c.png", "test", label="hole", foreground_frac=0.9),
        record("n.png", "test", foreground_frac=0.0),
        record("bad.png", "train", status=QUARANTINED, reason="the mask is empty"),
    ]
    return summarize(records, findings, **{"domain": "Rails", "format": "folders", **changes})


def test_numbers_of_a_domain() -> None:
    found = summary_of()
    train, test = found.splits["train"], found.splits["test"]
    assert list(found.splits) == ["train", "test"] and found.num_quarantined == 1
    assert (train.num_samples, train.num_images, test.num_samples, test.num_images) == (3, 2, 2, 2)
    assert train.classes == {"crack": 2, "hole": 1} and test.classes == {"hole": 1}
    assert (train.width, train.height) == ((64, 64, 640), (48, 48, 480))
    filled = {name: count for name, count in zip(FOREGROUND_BINS, train.foreground, strict=True) if count}
    assert filled == {"< 0.1 %": 1, "< 0.3 %": 1, "< 30 %": 1}
    assert (test.foreground[0], test.foreground[-1]) == (1, 1)
    assert train.median_foreground_frac == 0.001
    assert found.num_findings == {"error": 1, "warning": 3, "info": 1}
    assert [(count.check, count.num_findings) for count in found.checks] == [
        ("mask.empty", 1),
        ("classes.imbalance", 1),
        ("mask.thin", 2),
        ("image.near_duplicate", 1),
    ]


def test_a_domain_without_samples_has_no_numbers() -> None:
    found = summarize([], [], domain="D", format="f")
    assert (found.splits, found.num_quarantined, found.checks) == ({}, 0, ())
    assert "nothing was found wrong" in page(found, [], [])


def test_the_report_comes_back(tmp_path: Path) -> None:
    write_report(tmp_path / "data" / "D" / "report", summary_of(), FINDINGS[::-1])
    found, findings = read_report(tmp_path / "data" / "D" / "report")
    assert found == summary_of()
    assert [one.check for one in findings] == [
        "mask.empty",
        "classes.imbalance",
        "mask.thin",
        "mask.thin",
        "image.near_duplicate",
    ]


def test_the_same_findings_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = [Picture(FINDINGS[1], (View("a.png", noise(8)),))]
    for name, findings in (("a", FINDINGS), ("b", FINDINGS[::-1])):
        write_report(tmp_path / name, summary_of(findings), findings, pictures)
    for file in ("report.json", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, LayoutError, "is missing"),
        ("{", DataError, "cannot be read"),
        ("[]", DataError, "cannot be read"),
        ('{"version": 9}', DataError, "version 9, expected 1"),
        ('{"version": 1, "summary": {}, "findings": []}', DataError, "not the summary"),
    ],
)
def test_a_report_that_cannot_be_read(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    folder = tmp_path / "Rails" / "report"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "report.json").write_text(text)
    with pytest.raises(error, match=message) as caught:
        read_report(folder)
    assert "ingest" in str(caught.value)


class Outline(HTMLParser):
    """Tags, attributes and text of a page; open tags must be closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    findings = [finding("image.flat", [name], f"contrast of {name}") for name in HOSTILE]
    records = [record("a.png", label=name) for name in HOSTILE]
    summary = summarize(records, findings, domain=HOSTILE[0], format=HOSTILE[1])
    pictures = [Picture(found, (View(found.files[0], noise(6)),)) for found in findings]
    write_report(tmp_path, summary, findings, pictures)

    plain = outline(page(summary_of([FINDINGS[1]]), [FINDINGS[1]], [Picture(FINDINGS[1], (View("a.png", noise(6)),))]))
    hostile = outline((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}, "a name became a tag"
    assert {name for _, attributes in hostile.tags for name in attributes} == {
        name for _, attributes in plain.tags for name in attributes
    }, "a name became an attribute"
    assert not {tag for tag, _ in hostile.tags} & {"script", "link", "iframe", "a", "object"}
    sources = [attributes["src"] or "" for tag, attributes in hostile.tags if tag == "img"]
    assert len(sources) == len(HOSTILE) and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    for name in ("<script>alert(1)</script>.png", "a\\n\\x1b[31m\\u202egnp.exe", "bytes-\\udcff.png"):
        assert name in hostile.text
    assert "\x1b" not in hostile.text and "\u202e" not in hostile.text
    assert sorted(one.files[0] for one in read_report(tmp_path)[1]) == sorted(HOSTILE), "JSON keeps names as they are"


def test_the_page_fetches_nothing() -> None:
    text = page(summary_of(), FINDINGS, [Picture(FINDINGS[1], (View("a.png", noise(6)),))])
    assert re.findall(r"(?:https?:)?//[a-z]", text) == [] and "url(" not in text and "@import" not in text
    policies = [attributes["content"] for tag, attributes in outline(text).tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_long_lists_are_cut_and_said_to_be() -> None:
    many = [finding("image.flat", [f"{index:04d}.png"], "flat") for index in range(205)]
    copies = finding("image.duplicate", [f"c{index}.png" for index in range(9)], "copies")
    text = outline(page(summary_of([*many, copies]), [*many, copies], [])).text
    assert "and 5 more in report.json" in text and "and 3 more" in text
    assert "0199.png" in text and "0200.png" not in text and "c6.png" not in text


def noise(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(size).integers(0, 255, (size, size, 3), dtype=np.uint8)


def views(*missing: str) -> Callable[[str], View | None]:
    return lambda file: None if file in missing else View(file, noise(4))


def test_the_worst_are_shown_one_of_every_check_first() -> None:
    shown = worst_pictures(FINDINGS, views())
    assert [(one.finding.check, [view.file for view in one.views]) for one in shown] == [
        ("mask.empty", ["bad.png"]),
        ("mask.thin", ["a.png"]),
        ("image.near_duplicate", ["a.png", "b.png"]),
        ("mask.thin", ["b.png"]),
    ]
    assert [one.finding.check for one in worst_pictures(FINDINGS, views("bad.png"), limit=2)] == [
        "mask.thin",
        "image.near_duplicate",
    ]
    assert worst_pictures([], views()) == ()


def test_views_are_of_the_sample_that_a_file_belongs_to() -> None:
    samples = [SampleFacts("a.png", "a_mask.png"), SampleFacts("b.png", "b_mask.png"), SampleFacts("", "c_mask.png")]
    mask = np.zeros((40, 80), bool)
    mask[10:20, 10:40] = True
    image = np.full((40, 80, 3), 90, np.uint8)
    data: dict[int, tuple[Any, Any]] = {0: (image, mask), 1: (image, mask.T), 2: (None, mask)}
    load = view_loader(samples, lambda number: data[number], side_px=160)
    fitting, beside, alone = load("a_mask.png"), load("b.png"), load("c_mask.png")
    assert fitting is not None and beside is not None and alone is not None
    assert fitting.file == "a.png" and fitting.image.shape == (80, 160, 3)
    red, green, _ = fitting.image[30, 50].tolist()
    assert green > red, "the mask is tinted green"
    assert beside.image.shape == (160, 160 + 6 + 80, 3)
    assert alone.file == "c_mask.png" and (alone.image.min(), alone.image.max()) == (0, 255)
    assert load("unknown.png") is None
    assert view_loader(samples, lambda number: (None, None))("a.png") is None
