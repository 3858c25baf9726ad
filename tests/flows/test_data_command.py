"""``samcl data``: the report of an ingested domain, and contact sheets of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from samcl_core.domains.checks import finding
from samcl_core.domains.datareport import summarize, write_report
from samcl_core.domains.images import load_mask
from samcl_core.domains.manifest import Record, write_manifest
from samcl_core.domains.points import sample_points, write_points
from samcl_core.domains.synthetic import write_domain

pytestmark = pytest.mark.pipeline

Samcl = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one ingested domain of 5 + 2 samples and a report with two findings."""
    root = tmp_path_factory.mktemp("data") / "W"
    folder = root / "data" / "Cracks"
    write_domain(folder, "crack", 5, 2, 48, 0)
    (root / "params.yaml").write_text("version: 1\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    records = []
    for split in ("train", "test"):
        points = {}
        for path in sorted((folder / split / "masks").iterdir()):
            places, labels = sample_points(load_mask(path), 2, 1, key=path.name, seed=0)
            points[path.name] = (tuple(map(tuple, places.tolist())), tuple(labels.tolist()))
            name = f"{split}/images/{path.name}"
            masks = f"{split}/masks/{path.name}"
            records.append(Record(name, split, name, masks, 48, 48, 0.1, "", -1, path.name, path.name, name, masks))
        write_points(folder / split / "masks" / "points.json", points)
    write_manifest(folder / "manifest.parquet", records)
    findings = [
        finding("mask.thin", ["train/masks/a\x1b[2J.png"], "1.0 pixels wide"),
        finding("foreground.small", [], "hardly any object"),
    ]
    write_report(folder / "report", summarize(records, findings, domain="Cracks", format="samcl"), findings)
    return root


def test_report_says_where_the_page_is_and_what_was_found(samcl: Samcl, workspace: Path) -> None:
    code, out, err = samcl("-C", workspace, "data", "report", "Cracks")
    assert (code, err) == (0, "")
    assert str(workspace / "data" / "Cracks" / "report" / "report.html") in out
    lines = [line.split() for line in out.splitlines()]
    assert ["train", "5", "5", "48x48", "10.00%", "-"] in lines and ["test", "2", "2", "48x48", "10.00%", "-"] in lines
    assert any(line[:3] == ["warning", "mask.thin", "1"] for line in lines)
    assert r"a\x1b[2J.png" in out and "\x1b" not in out, "a name of a file must not steer the terminal"
    assert "the whole domain" in out


def test_report_as_json(samcl: Samcl, workspace: Path) -> None:
    code, out, _ = samcl("-C", workspace, "data", "report", "Cracks", "--json")
    values = json.loads(out)
    assert code == 0 and Path(values["page"]).is_file()
    assert values["summary"]["splits"]["train"]["num_samples"] == 5
    assert [found["check"] for found in values["findings"]] == ["foreground.small", "mask.thin"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (12 + 4 * 332, 40 + 2 * 366)),
        (("--split", "test"), (12 + 2 * 332, 40 + 366)),
        (("--n", 1, "--seed", 3), (12 + 332, 40 + 366)),
    ],
)
def test_view_writes_a_sheet(
    samcl: Samcl, workspace: Path, tmp_path: Path, options: tuple[object, ...], size: tuple[int, int]
) -> None:
    out_file = tmp_path / "sheet.png"
    code, out, _ = samcl("-C", workspace, "data", "view", "Cracks", "--out", out_file, *options)
    assert code == 0 and str(out_file) in out
    with Image.open(out_file) as sheet:
        assert (sheet.format, sheet.size) == ("PNG", size)


def test_view_writes_what_the_suffix_says(samcl: Samcl, workspace: Path, tmp_path: Path) -> None:
    code, out, _ = samcl("-C", workspace, "data", "view", "Cracks", "--n", 2, "--out", tmp_path / "sheet.JPG")
    assert code == 0 and "Cracks: 2 of 7 samples" in out
    with Image.open(tmp_path / "sheet.JPG") as sheet:
        assert sheet.format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "Nowhere"), "no ingested domain is called 'Nowhere'; ingested are Cracks"),
        (("view", "../Cracks"), "no ingested domain is called '../Cracks'"),
        (("view", "Cracks", "--out", "x.gifx"), "expected a name that ends in one of .png"),
        (("view", "Cracks", "--split", "dev"), "--split 'dev', expected one of train, val, test"),
    ],
)
def test_wrong_usage(samcl: Samcl, workspace: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = samcl("-C", workspace, "data", *arguments)
    assert (code, out) == (2, "") and message in err


def test_an_empty_split_is_said_to_be(samcl: Samcl, workspace: Path, tmp_path: Path) -> None:
    code, _, err = samcl("-C", workspace, "data", "view", "Cracks", "--split", "val", "--out", tmp_path / "x.png")
    assert code == 1 and "Cracks has no samples in val" in err and not (tmp_path / "x.png").exists()


def test_data_that_was_refused_has_a_report_until_better_data_arrives(
    samcl: Samcl, workspace: Path, tmp_path: Path
) -> None:
    root = tmp_path / "W"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_bytes((workspace / name).read_bytes())
    findings = [finding("mask.empty", ["a.png"], "the mask is empty")]
    summary = summarize([], findings, domain="Bad", format="samcl")
    refused = root / ".samcl" / "reports" / "Bad"
    write_report(refused, summary, findings)
    code, out, _ = samcl("-C", root, "data", "report", "Bad")
    assert code == 0 and "NOT INGESTED" in out and str(refused / "report.html") in out
    assert json.loads(samcl("-C", root, "data", "report", "Bad", "--json")[1])["is_ingested"] is False
    write_report(root / "data" / "Bad" / "report", summary, [])
    os.utime(refused / "report.json", (1, 1))
    assert "NOT INGESTED" not in samcl("-C", root, "data", "report", "Bad")[1]


def test_a_domain_without_a_report(samcl: Samcl, workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "W"
    (root / "data" / "Old").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_bytes((workspace / name).read_bytes())
    assert "none is ingested yet" in samcl("-C", root, "data", "report", "Old")[2]
    write_manifest(root / "data" / "Old" / "manifest.parquet", [])
    code, _, err = samcl("-C", root, "data", "report", "Old")
    assert code == 1 and "report.json is missing" in err and "dvc repro ingest@Old" in err
