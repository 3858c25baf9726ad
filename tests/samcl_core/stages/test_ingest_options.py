"""What a sample is, is the user's choice: all objects of an image or each of them, of which classes, how many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.config import Params, SourceParams, parse_params
from samcl_core.domains import Domain, load_mask
from samcl_core.domains.annotations import Shape, Shapes
from samcl_core.domains.drops import source_options
from samcl_core.domains.formats import ReadOptions, SourceImage
from samcl_core.domains.formats import base as formats
from samcl_core.domains.images import save_png
from samcl_core.errors import ConfigError, DataError
from samcl_core.stages import ingest, points

SIZE = 32
RNG = np.random.default_rng(0)


def _square(x: int, y: int, side: int) -> tuple[float, ...]:
    return (x, y, x + side, y, x + side, y + side, x, y + side)


@dataclass
class Boxes:
    """A format made for this test: every image has the same three objects and one crowd; two images have none."""

    name: str = "boxes"
    summary: str = "boxes.txt"
    described_at: str = "here"
    shapes: tuple[Shape, ...] = field(
        default=(
            Shape("cat", (_square(2, 2, 10),)),
            Shape("dog", (_square(20, 20, 4),)),
            Shape("cat", (_square(14, 2, 6),)),
            Shape("cat", (_square(2, 20, 8),), is_crowd=True),
        )
    )

    def matches(self, root: Path) -> bool:
        return (root / "boxes.txt").is_file()

    def scan(self, root: Path, options: ReadOptions) -> list[SourceImage]:
        annotation = Shapes(root / "boxes.txt", self.shapes, (SIZE, SIZE))
        nothing = Shapes(root / "boxes.txt", (), (SIZE, SIZE))
        return [
            SourceImage(
                path, nothing if path.name.startswith("n") else annotation, is_negative=path.name.startswith("n")
            )
            for path in root.glob("*.png")
        ]


@pytest.fixture(autouse=True)
def _known_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_FORMATS", {"boxes": Boxes()})


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "data/raw/D"
    raw.mkdir(parents=True)
    (raw / "boxes.txt").write_text("see the format\n")
    for name in ("a", "b", "c", "n1", "n2"):
        save_png(raw / f"{name}.png", RNG.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    return raw


def _params(**options: Any) -> Params:
    return parse_params({"domains": {"D": {"role": "learn", **options}}, "modules": {"D": {}}})


def _run(root: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = ingest.run(root, _params(**options), "D")
    return summary, Domain(root / "data/D").manifest().to_dict("records")


def _areas(root: Path, rows: list[dict[str, Any]]) -> Counter[int]:
    return Counter(
        int(load_mask(root / "data/D/annotations" / row["mask"].replace("/masks/", "/")).sum()) for row in rows
    )


def test_all_objects_are_one_sample(tmp_path: Path, raw: Path) -> None:
    summary, rows = _run(tmp_path)
    assert (summary["num_train"], summary["num_test"], summary["num_left_out"]) == (2, 1, 2)
    assert _areas(tmp_path, rows) == {100 + 16 + 36 + 64: 3}
    assert {(row["label"], row["instance"]) for row in rows} == {("", -1)}


def test_each_object_is_a_sample_of_its_own(tmp_path: Path, raw: Path) -> None:
    summary, rows = _run(tmp_path, instances="each")
    assert (summary["num_train"], summary["num_test"]) == (6, 3)
    assert _areas(tmp_path, rows) == {100: 3, 16: 3, 36: 3}  # the crowd is no object
    assert Counter((row["label"], row["instance"]) for row in rows) == {("cat", 0): 3, ("dog", 1): 3, ("cat", 2): 3}
    # Objects of one image stay in one split, and the published scripts pair files by sorted order.
    assert all(len({row["split"] for row in rows if row["source_image"] == name}) == 1 for name in ("a.png", "b.png"))
    for split in ("train", "test"):
        images = sorted(row["image"] for row in rows if row["split"] == split)
        masks = sorted(row["mask"] for row in rows if row["split"] == split)
        assert [Path(image).name for image in images] == [Path(mask).name for mask in masks]
    points.run(tmp_path, _params(instances="each"), "D")
    for split in ("train", "test"):
        for sample in Domain(tmp_path / "data/D").samples(split):
            mask = load_mask(sample.mask)
            assert all(mask[int(y * SIZE / 1024), int(x * SIZE / 1024)] for x, y in sample.points)


def test_codes_are_refused_where_no_mask_file_can_be_coded(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DataError, match=r"`codes` is given, but the format 'boxes' has no mask files") as caught:
        _run(tmp_path, codes={"cat": 1})
    assert "remove `codes`" in caught.value.hint
    assert not (tmp_path / "data/D").exists()


def test_classes_and_areas_choose(tmp_path: Path, raw: Path) -> None:
    _, rows = _run(tmp_path, classes=["cat"])
    assert _areas(tmp_path, rows) == {100 + 36 + 64: 3} and {row["label"] for row in rows} == {"cat"}
    _, rows = _run(tmp_path, instances="each", min_area_px=30)
    assert _areas(tmp_path, rows) == {100: 3, 36: 3}
    with pytest.raises(DataError, match=r"none of 5 images has an object of the classes \['bird'\]"):
        _run(tmp_path, classes=["bird"])


def test_negatives_are_kept_on_request(tmp_path: Path, raw: Path) -> None:
    summary, rows = _run(tmp_path, negatives="keep", test=["n1", "a"])
    assert (summary["num_train"], summary["num_test"], summary["num_left_out"]) == (3, 2, 0)
    assert [row["foreground_frac"] for row in rows if row["source_image"].startswith("n")] == [0.0, 0.0]
    points.run(tmp_path, _params(negatives="keep"), "D")
    samples = {sample.image.stem: sample for sample in Domain(tmp_path / "data/D").samples("test")}
    assert samples["n1"].labels == (0, 0, 0) and samples["a"].labels == (1, 1, 1)


def test_caps_and_validation(tmp_path: Path, raw: Path) -> None:
    for name in "defghijklm":
        save_png(raw / f"{name}.png", RNG.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    summary, _ = _run(tmp_path, val=0.3)
    assert (summary["num_train"], summary["num_val"], summary["num_test"]) == (7, 3, 3)
    points.run(tmp_path, _params(val=0.3), "D")
    domain = Domain(tmp_path / "data/D")
    assert len(domain.samples("val")) == 3
    assert domain.data_digest(("train", "test")) != domain.data_digest()
    summary, _ = _run(tmp_path, instances="each", max_samples=4)
    assert (summary["num_train"], summary["num_val"], summary["num_test"]) == (4, 0, 4)
    summary, _ = _run(tmp_path)
    points.run(tmp_path, _params(), "D")
    assert Domain(tmp_path / "data/D").samples("val") == []


def test_the_card_says_it_and_the_settings_come_first(tmp_path: Path, raw: Path) -> None:
    (raw / "domain.yaml").write_text("instances: each\nclasses: dog\nmin_area_px: 5\ngroup: '^(.)'\n")
    _, rows = _run(tmp_path)
    assert {row["label"] for row in rows} == {"dog"}
    _, rows = _run(tmp_path, classes=["cat"], instances="union")
    assert _areas(tmp_path, rows) == {200: 3}


def test_a_turned_image_turns_what_was_drawn_on_its_pixels(tmp_path: Path, raw: Path) -> None:
    shapes = (Shape("cat", ((0, 0, 8, 0, 8, 4, 0, 4),)),)
    formats._FORMATS["boxes"] = Boxes(shapes=shapes)
    image = Image.fromarray(RNG.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    wide = image.resize((SIZE, 2 * SIZE))
    wide.save(raw / "a.jpg", exif=exif)
    turned = [SourceImage(raw / "a.jpg", Shapes(raw / "boxes.txt", shapes, (SIZE, 2 * SIZE)))]
    from samcl_core.domains.validation import check_source, masks_of

    checked = check_source(turned[0], raw, SourceParams(), 128)
    assert (*checked[0].size, checked[0].turn_mask) == (2 * SIZE, SIZE, True)
    mask = masks_of(checked, SourceParams(), 128)[0]
    rows, columns = np.nonzero(mask)
    assert mask.shape == (SIZE, 2 * SIZE) and mask.sum() == 32
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 7, 2 * SIZE - 4, 2 * SIZE - 1)


def test_options_of_the_command_line() -> None:
    texts = {"classes": "a, b", "test": "0.25", "val": "@val.txt", "instances": "each", "min_area_px": "12"}
    assert source_options({**texts, "codes": "polyp:1,skin:#ffcc00"}) == {
        "classes": ["a", "b"],
        "test": 0.25,
        "val": ["@val.txt"],
        "instances": "each",
        "min_area_px": 12,
        "codes": {"polyp": 1, "skin": "#ffcc00"},
    }
    for values, problem in (
        ({"instance": "each"}, "instance"),
        ({"instances": "some"}, "instances"),
        ({"test": "1.5"}, "test: expected a share above 0 and below 1"),
        ({"codes": "polyp:#12"}, "codes"),
    ):
        with pytest.raises(ConfigError, match=problem):
            source_options(values)
