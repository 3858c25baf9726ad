"""Prompts are kept or drawn from the mask alone, and a domain reads back what the stages wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samcl_core.config import Params, parse_params
from samcl_core.domains import Domain, load_mask
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import digest_files, sha256_file
from samcl_core.stages import ingest, points

SIZE = 48


def _params(**sections: Any) -> Params:
    return parse_params({"domains": {"D": {}}, "modules": {"D": {}}, **sections})


def _arrive(root: Path, existing: dict[str, Any] | None = None) -> Domain:
    raw = root / "data/raw/D"
    write_domain(raw, "shadow", 3, 2, SIZE, seed=0)
    if existing is not None:
        (raw / "train/masks/points.json").write_text(json.dumps(existing))
    ingest.run(root, _params(), "D")
    return Domain(root / "data/D")


def test_samples_hold_what_was_written(tmp_path: Path) -> None:
    domain = _arrive(tmp_path)
    assert points.run(tmp_path, _params(), "D") == {"domain": "D", "num_masks": 5, "num_kept": 0, "num_drawn": 5}
    assert domain.name == "D"
    samples = domain.samples("train")
    assert [sample.id for sample in samples] == [f"train/images/shadow_000{index}.png" for index in range(3)]
    for sample in samples:
        assert sample.image_sha256 == sha256_file(sample.image)
        assert sample.mask_sha256 == sha256_file(sample.mask)
        assert (sample.width, sample.height, sample.labels, sample.box) == (SIZE, SIZE, (1, 1, 1), None)
        columns, rows = (np.array(sample.points) * SIZE / 1024).astype(int).T
        assert load_mask(sample.mask)[rows, columns].all()
    source = digest_files(tmp_path / "data/D/annotations/train")
    assert {name: digest for name, digest in digest_files(samples[0].mask.parent).items() if name in source} == source


def test_points_depend_on_mask_and_seed_alone(tmp_path: Path) -> None:
    whole, part = _arrive(tmp_path / "whole"), tmp_path / "part"
    raw = part / "data/raw/D"
    shutil.copytree(tmp_path / "whole/data/raw/D", raw)
    for kind in ("images", "masks"):
        (raw / "train" / kind / "shadow_0000.png").unlink()
        (raw / "train" / kind / "shadow_0002.png").rename(raw / "train" / kind / "a.png")
    ingest.run(part, _params(), "D")
    for root in (tmp_path / "whole", part):
        points.run(root, _params(), "D")
    by_mask = {sample.mask_sha256: sample.points for sample in whole.samples("train")}
    others = Domain(part / "data/D").samples("train")
    assert len(others) == 2
    assert all(by_mask[sample.mask_sha256] == sample.points for sample in others)
    points.run(part, _params(seed=1), "D")
    assert [sample.points for sample in Domain(part / "data/D").samples("train")] != [s.points for s in others]


def test_existing_points_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    domain = _arrive(tmp_path, {"shadow_0001.png": [[[1.0, 2.0], [3.0, 4.0]], [1, 0]], "gone.png": [[[1, 1]], [1]]})
    assert points.run(tmp_path, _params(), "D")["num_kept"] == 1
    kept = {sample.mask.name: (sample.points, sample.labels) for sample in domain.samples("train")}
    assert kept["shadow_0001.png"] == (((1.0, 2.0), (3.0, 4.0)), (1, 0))
    assert len(kept["shadow_0000.png"][0]) == 3
    assert "gone.png" not in json.loads((tmp_path / "data/D/train/masks/points.json").read_text())
    assert points.run(tmp_path, _params(prompts={"keep_existing": False}), "D")["num_kept"] == 0
    assert domain.samples("train")[1].points != ((1.0, 2.0), (3.0, 4.0))


def test_background_points_and_boxes_are_made_when_asked_for(tmp_path: Path) -> None:
    domain = _arrive(tmp_path, {"shadow_0001.png": [[[1.0, 2.0]], [1]]})
    prompts = {"num_points": 2, "num_background_points": 2, "boxes": True}
    points.run(tmp_path, _params(prompts=prompts), "D")
    samples = domain.samples("train")
    assert [sample.labels for sample in samples] == [(1, 1, 0, 0), (1,), (1, 1, 0, 0)]
    for sample in samples:
        mask = load_mask(sample.mask)
        assert sample.box is not None
        x0, y0, x1, y1 = (round(value * SIZE / 1024) for value in sample.box)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
    columns, rows = (np.array(samples[0].points) * SIZE / 1024).astype(int).T
    assert load_mask(samples[0].mask)[rows, columns].tolist() == [True, True, False, False]
    published = json.loads((tmp_path / "data/D/train/masks/points.json").read_text())
    assert all(len(entry) == 2 for entry in published.values())
    points.run(tmp_path, _params(), "D")
    assert not (tmp_path / "data/D/train/masks/boxes.json").exists()


def test_points_that_came_broken_are_named(tmp_path: Path) -> None:
    _arrive(tmp_path, {"shadow_0001.png": [[[1.0, 5000]], [1]]})
    with pytest.raises(DataError, match=r"shadow_0001\.png: expected \[x, y\] .* found \[1\.0, 5000\]"):
        points.run(tmp_path, _params(), "D")
    assert not (tmp_path / "data/D/train/masks").exists()
    points.run(tmp_path, _params(prompts={"keep_existing": False}), "D")


def test_the_data_digest_follows_the_data_and_not_the_place(tmp_path: Path) -> None:
    domain = _arrive(tmp_path / "a")
    points.run(tmp_path / "a", _params(), "D")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train, test, both = domain.data_digest(("train",)), domain.data_digest(("test",)), domain.data_digest()
    assert len({train, test, both}) == 3
    assert Domain(tmp_path / "b/data/D").data_digest() == both
    points.run(tmp_path / "b", _params(prompts={"boxes": True}), "D")
    assert Domain(tmp_path / "b/data/D").data_digest() != both
    points.run(tmp_path / "b", _params(prompts={"num_points": 4}), "D")
    assert Domain(tmp_path / "b/data/D").data_digest() != both
    points.run(tmp_path / "b", _params(), "D")
    assert Domain(tmp_path / "b/data/D").data_digest() == both


def test_a_broken_file_of_another_split_does_not_matter(tmp_path: Path) -> None:
    """Training depends on the training files alone."""
    domain = _arrive(tmp_path)
    points.run(tmp_path, _params(), "D")
    digest = domain.data_digest(("train",))
    shutil.rmtree(tmp_path / "data/D/test")
    assert Domain(tmp_path / "data/D").data_digest(("train",)) == digest


@pytest.mark.parametrize(
    ("lost", "hint"),
    [
        ("manifest.parquet", "ingest@D"),
        ("train/images/shadow_0001.png", "ingest@D"),
        ("train/masks/shadow_0001.png", "points@D"),
        ("train/masks/points.json", "points@D"),
    ],
)
def test_a_missing_file_is_named_with_the_next_command(tmp_path: Path, lost: str, hint: str) -> None:
    _arrive(tmp_path)
    points.run(tmp_path, _params(), "D")
    (tmp_path / "data/D" / lost).unlink()
    with pytest.raises(LayoutError, match=f"{lost} is missing") as caught:
        Domain(tmp_path / "data/D").samples("train")
    assert hint in caught.value.hint


def test_a_mask_without_points_is_named(tmp_path: Path) -> None:
    domain = _arrive(tmp_path)
    points.run(tmp_path, _params(), "D")
    (tmp_path / "data/D/train/masks/points.json").write_text("{}")
    with pytest.raises(LayoutError, match=r"has no points for shadow_0000\.png"):
        domain.samples("train")
    with pytest.raises(ValueError, match="'dev'"):
        domain.samples("dev")


def test_annotations_must_be_the_manifests(tmp_path: Path) -> None:
    _arrive(tmp_path)
    annotation = tmp_path / "data/D/annotations/test/shadow_0001.png"
    good = annotation.read_bytes()
    annotation.write_bytes(good + b" ")
    with pytest.raises(DataError, match="the manifest says"):
        points.run(tmp_path, _params(), "D")
    annotation.unlink()
    with pytest.raises(LayoutError, match=r"shadow_0001\.png is missing"):
        points.run(tmp_path, _params(), "D")
    with pytest.raises(LayoutError, match=r"manifest\.parquet is missing"):
        points.run(tmp_path / "elsewhere", _params(), "D")


def test_the_manifest_is_handed_out_as_a_copy(tmp_path: Path) -> None:
    domain = _arrive(tmp_path)
    points.run(tmp_path, _params(), "D")
    frame = domain.manifest()
    frame["status"] = "spoilt"
    samples = domain.samples("train")
    assert len(samples) == 3
    assert replace(samples[0]) == samples[0]
