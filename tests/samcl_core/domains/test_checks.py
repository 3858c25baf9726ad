"""A tree with every kind of defect planted once: each is found, where it is, as bad as it is, and nothing else is."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains import checks
from samcl_core.domains.checks import SEVERITY_OF, CheckParams, SampleFacts, check_sample
from samcl_core.domains.datareport import MEANINGS
from samcl_core.domains.domain_checks import check_all, check_domain, leaking_samples, similar_images
from samcl_core.domains.facts import MaskFacts, image_facts, mask_facts, point_facts
from samcl_core.domains.images import load_image, load_mask
from samcl_core.domains.synthetic import SCENES, write_domain
from samcl_core.errors import ImageError
from samcl_core.files import sha256_file


def load(path: Path) -> ModuleType:
    """A module beside the tests, by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted = load(Path(__file__).parents[2] / "planted_defects.py")
SAMPLES = Path(__file__).parents[4] / "shared" / "samples" / "data"
PARAMS = CheckParams()


def collect(raw: Path, labels: dict[str, str] | None = None, shared: dict[str, str] | None = None) -> list[SampleFacts]:
    """Facts of every image and mask of a tree in the published layout; ``shared`` is image to another image's mask."""
    found = []
    for split in ("train", "test"):
        masks = raw / split / "masks"
        points = json.loads((masks / "points.json").read_text()) if (masks / "points.json").is_file() else {}
        images = {path.stem: path for path in (raw / split / "images").iterdir()}
        drawn = {path.stem: path for path in masks.iterdir() if path.suffix != ".json"}
        for stem in sorted(images.keys() | drawn.keys()):
            mask = drawn.get((shared or {}).get(stem, stem))
            found.append(facts_of(raw, split, images.get(stem), mask, points, (labels or {}).get(stem, "")))
    return found


def facts_of(
    raw: Path, split: str, image: Path | None, mask: Path | None, points: dict[str, Any], label: str
) -> SampleFacts:
    values: dict[str, Any] = {"image_file": "", "split": split, "label": label}
    if image is not None:
        values |= {"image_file": image.relative_to(raw).as_posix(), "image_sha256": sha256_file(image)}
        try:
            pixels = load_image(image)
            values |= {"image": image_facts(pixels), "image_size": (pixels.shape[1], pixels.shape[0])}
        except ImageError as exc:
            values["image_problem"] = exc.message
    if mask is not None:
        values |= {"mask_file": mask.relative_to(raw).as_posix(), "mask_digest": sha256_file(mask)}
        try:
            foreground = load_mask(mask)
            grey = np.asarray(Image.open(mask).convert("L"))
            values |= {"mask": mask_facts(foreground, grey), "mask_size": (foreground.shape[1], foreground.shape[0])}
            if mask.name in points:
                values["points"] = point_facts(foreground, points[mask.name])
        except ImageError as exc:
            values["mask_problem"] = exc.message
    return SampleFacts(**values)


def test_every_planted_defect_is_found_and_nothing_else(tmp_path: Path) -> None:
    planted.clean_tree(tmp_path)
    expected = {(check, SEVERITY_OF[check], planter(tmp_path)) for check, planter in planted.PLANTED}
    assert len(expected) == len(planted.PLANTED)
    labels = {f"natural_{index:04d}": "common" for index in range(planted.NUM_CLEAN)} | {"tiny": "rare"}
    found = check_all(collect(tmp_path, labels, planted.SHARED), PARAMS)
    expected.add(("classes.imbalance", "warning", ()))
    assert {(one.check, one.severity, one.files) for one in found} == expected
    assert len(found) == len(expected)
    whole_domain = {"foreground.large", "foreground.small"}
    assert {check for check, _, _ in expected} | whole_domain == set(SEVERITY_OF), "a check that nothing plants"


@pytest.mark.parametrize(
    ("check", "planter"), planted.PLANTED, ids=[planter.__name__ for _, planter in planted.PLANTED]
)
def test_a_defect_alone_is_found_alone(tmp_path: Path, check: str, planter: Any) -> None:
    write_domain(tmp_path, "natural", 2, 1, 64, 0)
    for split in ("train", "test"):
        (tmp_path / split / "masks" / "points.json").write_text("{}")
    files = planter(tmp_path)
    assert [(one.check, one.files) for one in check_all(collect(tmp_path, shared=planted.SHARED), PARAMS)] == [
        (check, files)
    ]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_clean_domains_raise_no_alarm(tmp_path: Path, scene: str, size: int) -> None:
    write_domain(tmp_path, scene, 24, 8, size, 1)
    assert check_all(collect(tmp_path), PARAMS) == []


def test_real_samples_raise_no_alarm() -> None:
    if not SAMPLES.is_dir():
        pytest.skip(f"{SAMPLES} is absent: put samples of the published domains there")
    domains = sorted(SAMPLES.iterdir())
    assert len(domains) == 6
    for folder in domains:
        facts = collect(folder)
        assert len(facts) == 3 and all(sample.points is not None for sample in facts)
        assert check_all(facts, PARAMS) == [], folder.name


def test_every_check_is_explained() -> None:
    assert set(MEANINGS) == set(SEVERITY_OF)


def test_the_page_and_the_docstring_list_every_check_and_threshold() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-quality.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`[a-z_.]+` ?)+) \| (\w+) \| .+? \| (.*?) ?\|$", page, re.MULTILINE)
    listed = {check: severity for names, severity, _ in rows for check in re.findall(r"`([a-z_.]+)`", names)}
    assert listed == SEVERITY_OF
    thresholds = {name for _, _, names in rows for name in re.findall(r"`([a-z_.]+)`", names)}
    assert thresholds - {"ingest.mask_threshold"} == set(CheckParams.model_fields) - {"near_duplicates"}
    assert dict(re.findall(r"^([a-z]+\.[a-z_]+) +(\w+) ", checks.__doc__ or "", re.MULTILINE)) == SEVERITY_OF


def sample(name: str, **changes: Any) -> SampleFacts:
    values: dict[str, Any] = {
        "image_file": f"{name}.png",
        "mask_file": f"{name}_mask.png",
        "split": "train",
        "image_size": (64, 64),
        "mask_size": (64, 64),
        "image_sha256": name,
        "mask_digest": name,
        "mask": MaskFacts(0.2, 1, 40.0),
    }
    return SampleFacts(**{**values, **changes})


def checks_of(samples: list[SampleFacts], params: CheckParams = PARAMS) -> list[str]:
    return [found.check for found in check_domain(samples, params)]


@pytest.mark.parametrize(("share", "check"), [(0.7, "foreground.large"), (0.00005, "foreground.small")])
def test_shares_of_foreground_of_a_whole_domain(share: float, check: str) -> None:
    samples = [sample(f"a{index}", mask=MaskFacts(share if index < 11 else 0.2, 1, 40.0)) for index in range(20)]
    assert checks_of(samples) == [check]
    assert checks_of(samples[:19]) == [], "too few to judge"
    assert checks_of([*samples[2:], sample("b"), sample("c")]) == [], "less than half of them"


def test_classes_are_compared_by_their_samples() -> None:
    samples = [sample(f"a{index}", label="crack") for index in range(51)] + [sample("b", label="hole")]
    assert checks_of(samples) == ["classes.imbalance"]
    (found,) = check_domain(samples, PARAMS)
    assert found.message == "51 samples of 'crack' and 1 of 'hole': 51 times as many, expected at most 50"
    assert checks_of(samples[1:]) == [] and checks_of([s for s in samples if s.label == "crack"]) == []


def test_objects_of_one_image_are_one_image() -> None:
    objects = [sample("a"), sample("a"), sample("a")]
    assert checks_of(objects) == [] and similar_images(objects, PARAMS) == []


def test_copies_with_one_mask_are_one_finding() -> None:
    copies = [sample("a"), sample("b", image_sha256="a", mask_digest="a")]
    (found,) = check_domain(copies, PARAMS)
    assert (found.check, found.message) == ("image.duplicate", "the same image 2 times, with the same mask")
    assert similar_images(copies, PARAMS) == [("a.png", "b.png")]


def test_images_without_a_split_do_not_leak() -> None:
    assert checks_of([sample("a", split=None), sample("b", split=None, image_sha256="a")]) == ["image.duplicate"]


def test_of_a_leak_the_copy_for_testing_stays() -> None:
    samples = [
        sample("a"),
        sample("b", image_sha256="a", split="val"),
        sample("c", image_sha256="a", split="test"),
        sample("d", split="test"),
        sample("e", split=None),
    ]
    reasons = leaking_samples(samples)
    assert reasons == {0: "the same picture is in test: c.png", 1: "the same picture is in test: c.png"}
    assert checks_of([one for number, one in enumerate(samples) if number not in reasons]) == []
    assert [found.files for found in check_domain(samples, PARAMS)] == [("a.png", "b.png", "c.png")]


def test_a_negative_may_be_empty() -> None:
    empty = MaskFacts(0.0, 0, 0.0)
    assert check_sample(sample("a", mask=empty, is_negative=True), PARAMS) == []
    assert check_sample(sample("a", mask=None, mask_file="", is_negative=True), PARAMS) == []
    assert [found.check for found in check_sample(sample("a", mask=empty), PARAMS)] == ["mask.empty"]
    assert checks_of([sample("a", mask=empty, is_negative=True), sample("b", mask=empty, mask_digest="a")]) == []


def test_an_empty_mask_says_what_its_values_may_be() -> None:
    (found,) = check_sample(sample("a", mask=MaskFacts(0.0, 0, 0.0, max_grey=3)), PARAMS)
    assert "its largest value is 3" in found.message and "codes" in found.message


def test_both_files_can_be_broken() -> None:
    found = check_sample(sample("a", image_problem="cannot be read", mask_problem="too large (9x9)"), PARAMS)
    assert [(one.check, one.files) for one in found] == [
        ("image.unreadable", ("a.png",)),
        ("mask.too_large", ("a_mask.png",)),
    ]


def test_the_order_of_samples_does_not_matter(tmp_path: Path) -> None:
    planted.clean_tree(tmp_path)
    for _, planter in planted.PLANTED:
        planter(tmp_path)
    samples = collect(tmp_path, shared=planted.SHARED)
    assert check_all(samples[::-1], PARAMS) == check_all(samples, PARAMS)
    twins = similar_images(samples, PARAMS)
    assert similar_images(samples[::-1], PARAMS) == twins
    usable = [one for one in samples if all(found.severity != "error" for found in check_sample(one, PARAMS))]
    assert check_domain(usable, PARAMS, twins) == check_domain(usable, PARAMS), "twins of more samples do no harm"
