"""Data that comes again is hashed, not decoded; what was measured is forgotten when anything else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from samcl_core.config import parse_params
from samcl_core.domains import images, validation
from samcl_core.domains.synthetic import write_domain
from samcl_core.files import digest_files
from samcl_core.stages import ingest

SIZE = 48


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose pixels were read while they were checked."""
    names: list[str] = []
    read_image = images.read_image

    def counting(path: Path, *args: Any, **options: Any) -> images.Picture:
        names.append(path.name)
        return read_image(path, *args, **options)

    monkeypatch.setattr(validation, "read_image", counting)
    return names


def _run(root: Path, **sections: Any) -> dict[str, Any]:
    params = parse_params({"domains": {"D": {"role": "learn"}}, "modules": {"D": {}}, **sections})
    return ingest.run(root, params, "D")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    raw = tmp_path / "data/raw/D"
    write_domain(raw, "rail", 6, 2, SIZE, seed=0)
    (raw / "test/masks/points.json").write_text(json.dumps({"rail_0001.png": [[[10, 20.5]], [1]]}))
    return tmp_path


def test_unchanged_files_are_not_decoded_and_give_the_same_domain(workspace: Path, decoded: list[str]) -> None:
    first = _run(workspace)
    assert len(decoded) == 8
    before = digest_files(workspace / "data/D")
    decoded.clear()
    assert _run(workspace) == first
    assert decoded == []
    assert digest_files(workspace / "data/D") == before


def test_only_what_changed_is_decoded(workspace: Path, decoded: list[str]) -> None:
    _run(workspace)
    decoded.clear()
    raw = workspace / "data/raw/D"
    (raw / "train/images/rail_0003.png").write_bytes((raw / "train/images/rail_0002.png").read_bytes()[:400])
    write_domain(raw / "new", "rail", 1, 1, SIZE, seed=5)
    (raw / "new/train/masks/rail_0000.png").replace(raw / "train/masks/rail_0004.png")
    (raw / "test/masks/points.json").write_text(json.dumps({"rail_0001.png": [[[11, 20.5]], [1]]}))
    shutil.rmtree(raw / "new")
    summary = _run(workspace)
    assert sorted(decoded) == ["rail_0001.png", "rail_0003.png", "rail_0004.png"]  # points, image and mask
    assert list(summary["reasons"]) == ["train/images/rail_0003.png"]
    # What is wrong is never remembered.
    decoded.clear()
    assert _run(workspace) == summary
    assert decoded == ["rail_0003.png"]


def test_other_settings_and_damage_cost_a_new_look(workspace: Path, decoded: list[str]) -> None:
    first = _run(workspace)
    memory = workspace / ".samcl/cache/ingest/D.jsonl"
    for change in (
        lambda: {"ingest": {"mask_threshold": 200}},
        lambda: {"ingest": {"mask_threshold": 200, "checks": {"model_px": 512}}},
        lambda: memory.unlink() or {},
        lambda: memory.write_bytes(b"\xff\x00damaged") and {},
        lambda: memory.write_text(memory.read_text().replace('"label"', '"lable"')) and {},
    ):
        sections = change()
        decoded.clear()
        assert _run(workspace, **sections) == first
        assert len(decoded) == 8
    # Which split an image is in is not measured: another share needs no look.
    decoded.clear()
    _run(workspace, domains={"D": {"role": "learn", "test": ["rail_0002.png"]}}, ingest={})
    assert decoded == []
