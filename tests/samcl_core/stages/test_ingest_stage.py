"""From a folder as it arrived to a domain: every file has a place or a reason."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.config import Params, parse_params
from samcl_core.domains import Domain, load_image, load_mask
from samcl_core.domains.datareport import read_report
from samcl_core.domains.images import save_png
from samcl_core.domains.synthetic import draw, write_domain
from samcl_core.errors import DataError, ImageError, LayoutError, UsageError
from samcl_core.files import digest_files
from samcl_core.stages import ingest, points

SIZE = 48


def _params(role: str = "learn", **sections: Any) -> Params:
    domains = {"D": {"role": role}}
    return parse_params({"domains": domains, "modules": {"D": {}} if role == "learn" else {}, **sections})


def _pair(index: int) -> tuple[np.ndarray, np.ndarray]:
    return draw("crack", size_px=SIZE, seed=0, split="train", index=index)


def _write_flat(raw: Path, count: int, first: int = 0) -> None:
    """``images/`` and ``masks/`` with ``count`` good PNG pairs, drawn from number ``first`` on."""
    for kind in ("images", "masks"):
        (raw / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask = _pair(first + index)
        save_png(raw / "images" / f"{index:02d}.png", image)
        save_png(raw / "masks" / f"{index:02d}.png", mask)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw" / "D"


def _rows(root: Path) -> dict[str, dict[str, Any]]:
    frame = Domain(root / "data" / "D").manifest()
    return {row["source_image"] or row["source_mask"]: row for row in frame.to_dict("records")}


def _names(folder: Path) -> list[str]:
    """File names in the order in which the published scripts pair them."""
    return sorted(path.name for path in folder.iterdir() if path.name != "points.json")


def test_the_published_layout_is_kept_byte_for_byte(tmp_path: Path, raw: Path) -> None:
    write_domain(raw, "polyp", 3, 2, SIZE, seed=0)
    (raw / "test/masks/points.json").write_text(json.dumps({"polyp_0001.png": [[[10, 20.5]], [1]]}))
    summary = ingest.run(tmp_path, _params(), "D")
    assert summary == {
        "domain": "D",
        "format": "samcl",
        "num_train": 3,
        "num_val": 0,
        "num_test": 2,
        "num_quarantined": 0,
        "reasons": {},
        "num_left_out": 0,
        "num_warnings": 1,  # the point is not in its mask
    }
    target = tmp_path / "data" / "D"
    for split in ("train", "test"):
        assert digest_files(target / split / "images") == digest_files(raw / split / "images")
    assert digest_files(target / "annotations" / "train") == digest_files(raw / "train" / "masks")
    assert json.loads((target / "annotations/test/points.json").read_text()) == {"polyp_0001.png": [[[10, 20.5]], [1]]}
    row = _rows(tmp_path)["train/images/polyp_0002.png"]
    assert row["id"] == row["image"] == "train/images/polyp_0002.png"
    assert (row["mask"], row["split"], row["status"]) == ("train/masks/polyp_0002.png", "train", "ok")
    assert (row["width"], row["height"]) == (SIZE, SIZE)
    truth = draw("polyp", size_px=SIZE, seed=0, split="train", index=2)[1]
    assert row["foreground_frac"] == pytest.approx(truth.mean())


def test_the_same_source_gives_the_same_bytes_and_the_seed_moves_the_split(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write_flat(tmp_path / name / "data/raw/D", 10)
        ingest.run(tmp_path / name, _params(seed=1 if name == "c" else 0), "D")
    a, b, c = (digest_files(tmp_path / name / "data/D") for name in ("a", "b", "c"))
    assert a == b
    assert set(a) != set(c)


def test_a_source_without_test_split_gets_a_seeded_one(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 10)
    summary = ingest.run(tmp_path, _params(ingest={"test_frac": 0.3}), "D")
    assert (summary["num_train"], summary["num_test"]) == (7, 3)
    before = {key: row["split"] for key, row in _rows(tmp_path).items()}
    ranks = [key for key in before if before[key] == "test"]
    (raw / "images/00.png").unlink()
    (raw / "masks/00.png").unlink()
    ingest.run(tmp_path, _params(ingest={"test_frac": 0.3}), "D")
    after = {key: row["split"] for key, row in _rows(tmp_path).items()}
    assert len({key for key in after if after[key] == "test"} & set(ranks)) >= 2


def test_bad_pairs_are_quarantined_with_their_reason(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 20)
    (raw / "images/00.png").write_bytes(b"nonsense")
    (raw / "masks/01.png").write_bytes((raw / "masks/01.png").read_bytes()[:60])
    save_png(raw / "masks/02.png", np.zeros((SIZE, SIZE), dtype=bool))
    save_png(raw / "masks/03.png", np.ones((SIZE, SIZE - 1), dtype=bool))
    (raw / "masks/04.png").unlink()
    (raw / "images/05.png").unlink()
    summary = ingest.run(tmp_path, _params(ingest={"max_bad_frac": 0.3}), "D")
    assert (summary["num_quarantined"], summary["num_train"] + summary["num_test"]) == (6, 14)
    assert summary["reasons"]["images/00.png"] == "cannot be read: not an image"
    assert summary["reasons"]["images/01.png"].startswith("masks/01.png: cannot be read")
    assert summary["reasons"]["images/02.png"] == "masks/02.png: the mask is empty"
    assert summary["reasons"]["images/03.png"] == "the mask is 47x48 pixels, the image 48x48"
    assert summary["reasons"]["images/04.png"] == "the image has no mask"
    assert summary["reasons"]["masks/05.png"] == "the mask has no image"
    rows = _rows(tmp_path)
    assert {key for key, row in rows.items() if row["status"] == "quarantined"} == set(summary["reasons"])
    assert rows["images/03.png"]["reason"] == summary["reasons"]["images/03.png"]
    written = digest_files(tmp_path / "data/D")
    assert not [name for name in written if Path(name).stem in ("00", "01", "02", "03", "04", "05")]


def test_too_many_bad_pairs_fail_and_leave_the_domain_as_it_was(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 10)
    ingest.run(tmp_path, _params(), "D")
    before = digest_files(tmp_path / "data/D")
    for index in range(3):
        (raw / "images" / f"{index:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"D: 3 of 10 images cannot be used \(30%\), at most 20%.*") as caught:
        ingest.run(tmp_path, _params(), "D")
    assert "images/00.png" in str(caught.value)
    assert digest_files(tmp_path / "data/D") == before
    summary, findings = read_report(tmp_path / ".samcl/reports/D")
    assert [found.files for found in findings] == [(f"images/{index:02d}.png",) for index in range(3)]
    assert summary.num_quarantined == 3 and str(tmp_path / ".samcl/reports/D/report.html") in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "role", "found"),
    [
        ({"train": 1}, "learn", "no good image in test; found 1 for train and 0 for test"),
        ({"test": 2}, "learn", "no good image in train; found 0 for train and 2 for test"),
        ({"test": 2}, "natural", "no good image in train"),
    ],
)
def test_a_split_without_images_fails(tmp_path: Path, raw: Path, splits: dict[str, int], role: str, found: str) -> None:
    for split, count in splits.items():
        _write_flat(raw / split, count)
    with pytest.raises(DataError, match=found):
        ingest.run(tmp_path, _params(role), "D")
    assert not (tmp_path / "data/D").exists()


def test_an_unseen_domain_may_have_test_images_only(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw / "test", 2)
    ingest.run(tmp_path, _params("unseen"), "D")
    points.run(tmp_path, _params("unseen"), "D")
    domain = Domain(tmp_path / "data/D")
    assert (len(domain.samples("train")), len(domain.samples("test"))) == (0, 2)


def test_odd_files_become_upright_clean_png(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 4)
    image, mask = _pair(0)
    Image.fromarray(image).convert("RGBA").save(raw / "images/00.png")
    Image.fromarray(mask.astype(np.uint8) * 200).save(raw / "masks/00.png")
    wide = Image.fromarray(image[:, : SIZE // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(raw / "images/01.png", exif=exif)
    Image.fromarray(mask[:, : SIZE // 2]).save(raw / "masks/01.png")
    wide.save(raw / "images/02.png", exif=exif)
    save_png(raw / "masks/02.png", np.rot90(mask[:, : SIZE // 2], -1))
    ingest.run(tmp_path, _params(), "D")
    domain, rows = tmp_path / "data/D", _rows(tmp_path)
    np.testing.assert_array_equal(load_image(domain / rows["images/00.png"]["image"]), image)
    upright = np.rot90(image[:, : SIZE // 2], -1)
    for name in ("01", "02"):
        row = rows[f"images/{name}.png"]
        assert (row["width"], row["height"]) == (SIZE, SIZE // 2)
        np.testing.assert_array_equal(load_image(domain / row["image"]), upright)
        written = load_mask(domain / "annotations" / row["split"] / Path(row["mask"]).name)
        np.testing.assert_array_equal(written, np.rot90(mask[:, : SIZE // 2], -1))
    for row in rows.values():
        with Image.open(domain / "annotations" / row["split"] / Path(row["mask"]).name) as file:
            assert (file.format, file.mode) == ("PNG", "L")
            assert set(np.unique(np.asarray(file))) <= {0, 255}


def test_points_of_turned_images_are_not_trusted(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(_pair(0)[0]).save(raw / "images/00.png", exif=exif)
    (raw / "masks/points.json").write_text(json.dumps({f"{i:02d}.png": [[[i, i]], [1]] for i in range(3)}))
    ingest.run(tmp_path, _params(), "D")
    files = (tmp_path / "data/D/annotations").glob("*/points.json")
    kept = {name: entry for file in files for name, entry in json.loads(file.read_text()).items()}
    assert kept == {"01.png": [[[1, 1]], [1]], "02.png": [[[2, 2]], [1]]}


def test_lossy_masks_with_wrong_suffixes_keep_their_names_and_points(tmp_path: Path, raw: Path) -> None:
    """As published data comes: masks are JPEG with grey edges, a PNG is named .jpg, a JPEG .png."""
    write_domain(raw, "polyp", 2, 1, SIZE, seed=0)
    for path in sorted(raw.rglob("*.png")):
        pixels = Image.open(path).copy()
        target = path.with_suffix(".jpg") if "masks" in path.parts or "train" in path.parts else path
        path.unlink()
        pixels.convert("RGB").save(target, format="PNG" if target.stem == "polyp_0001" else "JPEG", quality=60)
    (raw / "test/images/polyp_0000.png").rename(raw / "test/images/polyp_0000.jpg")
    entries = {"polyp_0000.jpg": [[[5, 6]], [1]], "polyp_0001.jpg": [[[7, 8]], [1]]}
    (raw / "train/masks/points.json").write_text(json.dumps(entries))
    assert ingest.run(tmp_path, _params(), "D")["num_quarantined"] == 0
    points.run(tmp_path, _params(), "D")
    samples = Domain(tmp_path / "data/D").samples("train")
    assert [(sample.mask.name, sample.points) for sample in samples] == [
        ("polyp_0000.jpg", ((5.0, 6.0),)),
        ("polyp_0001.jpg", ((7.0, 8.0),)),
    ]
    truth = draw("polyp", size_px=SIZE, seed=0, split="train", index=0)[1]
    assert (load_mask(samples[0].mask) != truth).mean() < 0.02
    assert samples[0].mask.read_bytes().startswith(b"\x89PNG")
    assert _names(tmp_path / "data/D/train/images") == _names(tmp_path / "data/D/train/masks")


def test_the_threshold_is_the_profiles(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 4)
    grey = np.full((SIZE, SIZE), 200, dtype=np.uint8)
    grey[:10] = 255
    grey[20:] = 0
    Image.fromarray(grey).save(raw / "masks/00.png")
    areas = []
    for profile in ("default", "reference"):
        ingest.run(tmp_path, _params(profile=profile), "D")
        areas.append(_rows(tmp_path)["images/00.png"]["foreground_frac"] * SIZE)
    assert areas == pytest.approx([20, 10])


def test_names_that_clash_or_sort_differently_are_made_distinct(tmp_path: Path, raw: Path) -> None:
    for number, split in enumerate(("train", "training", "test")):
        _write_flat(raw / split, 1, first=number)
    _, mask = _pair(0)
    for name in ("x.jpg", "x.b.jpg"):
        Image.fromarray(_pair(3)[0]).save(raw / "train/images" / name)
        save_png(raw / "train/masks" / f"{Path(name).stem}_mask.png", mask)
    ingest.run(tmp_path, _params(), "D")
    points.run(tmp_path, _params(), "D")
    rows = _rows(tmp_path)
    assert {rows["train/images/00.png"]["image"], rows["training/images/00.png"]["image"]} == {
        "train/images/00.png",
        "train/images/00_2.png",
    }
    folder = tmp_path / "data/D/train"
    by_image = {Path(row["image"]).name: Path(row["mask"]).name for row in rows.values() if row["split"] == "train"}
    assert [by_image[name] for name in _names(folder / "images")] == _names(folder / "masks")


def test_an_image_in_both_splits_is_tested_and_not_trained(tmp_path: Path, raw: Path) -> None:
    write_domain(raw, "crack", 6, 2, SIZE, seed=0)
    shutil.copy(raw / "train/images/crack_0001.png", raw / "test/images/crack_0001.png")
    summary = ingest.run(tmp_path, _params(), "D")
    assert (summary["num_train"], summary["num_test"]) == (5, 2)
    assert summary["reasons"] == {
        "train/images/crack_0001.png": "the same picture is in test: test/images/crack_0001.png"
    }


def test_levels_that_archives_add_are_taken_off(tmp_path: Path, raw: Path) -> None:
    write_domain(raw / "Polyps-v2" / "data", "crack", 2, 1, SIZE, seed=0)
    ingest.run(tmp_path, _params(), "D")
    assert "Polyps-v2/data/train/images/crack_0000.png" in _rows(tmp_path)


def test_a_new_arrival_replaces_the_files_of_the_old_one(tmp_path: Path, raw: Path) -> None:
    write_domain(raw, "crack", 4, 2, SIZE, seed=0)
    ingest.run(tmp_path, _params(), "D")
    write_domain(raw, "rail", 2, 1, SIZE, seed=0)
    ingest.run(tmp_path, _params(), "D")
    names = [name for name in digest_files(tmp_path / "data/D") if not name.startswith("report/")]
    assert all("rail" in name for name in names if name != "manifest.parquet")
    assert not list((tmp_path / "data/D").rglob("*.tmp"))


def test_progress_counts_up_to_the_end(tmp_path: Path, raw: Path) -> None:
    write_domain(raw, "crack", 2, 1, SIZE, seed=0)
    seen: list[tuple[str, int, int]] = []
    ingest.run(tmp_path, _params(), "D", lambda what, done, total: seen.append((what, done, total)))
    for what in ("checking images", "writing"):
        assert [entry for entry in seen if entry[0] == what] == [(what, done, 3) for done in range(4)]


def test_what_did_not_arrive_or_is_no_data_set(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(LayoutError, match=r"raw/D is missing"):
        ingest.run(tmp_path, _params(), "D")
    (raw / "images").mkdir(parents=True)
    (raw / "masks").mkdir()
    with pytest.raises(LayoutError, match="image"):
        ingest.run(tmp_path, _params(), "D")
    params = parse_params({"domains": {"D": {"format": "magic"}}, "modules": {"D": {}}})
    with pytest.raises(UsageError, match="'magic' is unknown"):
        ingest.run(tmp_path, params, "D")


def test_a_failure_while_writing_leaves_no_manifest_and_no_half_folder(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_domain(raw, "crack", 3, 1, SIZE, seed=0)
    ingest.run(tmp_path, _params(), "D")

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "writing" and done == 2:
            raise KeyboardInterrupt

    images = digest_files(tmp_path / "data/D/train/images")
    with pytest.raises(KeyboardInterrupt):
        ingest.run(tmp_path, _params(), "D", interrupt)
    assert not (tmp_path / "data/D/manifest.parquet").exists()
    assert digest_files(tmp_path / "data/D/train/images") == images
    assert not list((tmp_path / "data/D").rglob("*.tmp"))
    with pytest.raises(LayoutError, match=r"manifest\.parquet is missing"):
        Domain(tmp_path / "data/D").samples("train")


def test_hostile_files_never_crash(tmp_path: Path, raw: Path) -> None:
    _write_flat(raw, 12)
    noise = random.Random(0)
    for path in sorted(raw.rglob("*.png"))[::2]:
        damaged = bytearray(path.read_bytes())
        for _ in range(4):
            damaged[noise.randrange(len(damaged))] = noise.randrange(256)
        path.write_bytes(bytes(damaged))
    try:
        summary = ingest.run(tmp_path, _params(ingest={"max_bad_frac": 1.0}), "D")
    except (DataError, ImageError):
        return
    assert summary["num_train"] + summary["num_test"] + summary["num_quarantined"] == 12


def test_the_first_steps_start_without_torch() -> None:
    code = (
        "import sys; import samcl_core.stages.ingest, samcl_core.stages.points, samcl_core.domains.synthetic;"
        "print(sorted({'torch', 'matplotlib', 'prefect', 'dvc', 'mlflow'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
