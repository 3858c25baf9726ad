"""Ingest judges what it reads: planted defects come out in the report, and real and drawn domains raise no alarm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samcl_core.config import Params, parse_params
from samcl_core.domains import Domain
from samcl_core.domains.checks import SEVERITY_OF
from samcl_core.domains.datareport import REPORT_HTML, read_report
from samcl_core.domains.manifest import OK
from samcl_core.domains.synthetic import SCENES, write_domain
from samcl_core.stages import ingest, points

TESTS = Path(__file__).parents[2]
SAMPLES = TESTS.parents[1] / "shared" / "samples" / "data"


@pytest.fixture(scope="module")
def planted(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(TESTS / "planted_defects.py")


def params(**ingest_options: Any) -> Params:
    return parse_params({"domains": {"D": {}}, "modules": {"D": {}}, "ingest": ingest_options})


def test_planted_defects_are_reported_and_nothing_else_is(tmp_path: Path, planted: ModuleType) -> None:
    raw = tmp_path / "data" / "raw" / "D"
    planted.clean_tree(raw)
    # One mask file for two images is nothing that folders can say.
    planters = [(check, planter) for check, planter in planted.PLANTED if check != "mask.shared"]
    expected = {(check, SEVERITY_OF[check], planter(raw)) for check, planter in planters}
    result = ingest.run(tmp_path, params(max_bad_frac=0.5), "D")

    folder = tmp_path / "data" / "D"
    summary, findings = read_report(folder / "report")
    assert {(found.check, found.severity, found.files) for found in findings} == expected
    assert len(findings) == len(expected)
    assert summary.num_findings["warning"] == result["num_warnings"]

    rows = Domain(folder).manifest()
    good = rows[rows["status"] == OK]
    errors = {files[0] for _, severity, files in expected if severity == "error"}
    assert set(result["reasons"]) == set(rows[rows["status"] != OK]["id"])
    assert result["num_quarantined"] == summary.num_quarantined == len(errors)
    assert not set(good["source_image"]) & errors and not set(good["source_mask"]) & errors
    assert not set(good[good["split"] == "train"]["image_sha256"]) & set(good[good["split"] == "test"]["image_sha256"])
    page = (folder / "report" / REPORT_HTML).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 12 and str(tmp_path) not in page


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_drawn_domains_raise_no_alarm(tmp_path: Path, scene: str) -> None:
    write_domain(tmp_path / "raw", scene, 6, 3, 48, 5)
    found = ingest.survey(tmp_path / "raw", params())
    assert (found.findings, found.bad, len(found.good)) == ((), (), 9)


@pytest.mark.parametrize("name", ["CAMO", "COCO", "COD", "ISIC", "ISTD", "Kvasir"])
def test_published_domains_raise_no_alarm(tmp_path: Path, name: str) -> None:
    if not SAMPLES.is_dir():
        pytest.skip(f"{SAMPLES} is absent: put samples of the published domains there")
    shutil.copytree(SAMPLES / name, tmp_path / "data" / "raw" / "D")
    result = ingest.run(tmp_path, params(), "D")
    assert (result["num_train"], result["num_test"], result["num_quarantined"], result["num_warnings"]) == (2, 1, 0, 0)
    summary, findings = read_report(tmp_path / "data" / "D" / "report")
    assert findings == [] and summary.format == "samcl"
    assert points.run(tmp_path, params(), "D")["num_kept"] == 3, "the published points are used as they are"
