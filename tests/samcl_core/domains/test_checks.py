"""A tree with every kind of defect planted once: each is found, where it is, as bad as it is, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.checks import SEVERITY_OF, CheckParams, SampleFacts, check_sample
from samcl_core.domains.datareport import MEANINGS
from samcl_core.domains.domain_checks import check_all, check_domain, leaking_samples, similar_images
from samcl_core.domains.facts import MaskFacts, image_facts, mask_facts, point_facts
from samcl_core.domains.images import decode_image, load_image, load_mask, save_png
from samcl_core.domains.points import sample_points
from samcl_core.domains.synthetic import SCENES, draw, write_domain
from samcl_core.errors import ImageError
from samcl_core.files import sha256_file

SAMPLES = Path(__file__).parents[4] / "shared" / "samples" / "data"
PARAMS = CheckParams()
NUM_CLEAN = 60

Planter = Callable[[Path], tuple[str, ...]]


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


def clean_tree(raw: Path) -> None:
    """A domain without defects, with points as a source gives them."""
    write_domain(raw, "natural", NUM_CLEAN, 20, 64, 0)
    for split in ("train", "test"):
        masks = raw / split / "masks"
        points = {path.name: prompt(load_mask(path)) for path in sorted(masks.iterdir())}
        (masks / "points.json").write_text(json.dumps(points))


def prompt(mask: np.ndarray[Any, Any]) -> list[Any]:
    points, labels = sample_points(mask, 3, 1, key="k", seed=0)
    return [points.tolist(), labels.tolist()]


def put(raw: Path, name: str, *, split: str = "train", size: tuple[int, int] = (64, 64)) -> tuple[str, str]:
    """A clean image and its mask, each picture another one; their paths in the tree."""
    index = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    image, mask = draw("polyp", size_px=max(64, *size), seed=9, split=split, index=index)
    files = f"{split}/images/{name}.png", f"{split}/masks/{name}.png"
    save_png(raw / files[0], np.ascontiguousarray(image[: size[0], : size[1]]))
    mask = mask[: size[0], : size[1]].copy()
    mask[: size[0] // 3, : size[1] // 3] = True
    save_png(raw / files[1], mask)
    return files


def without_image(raw: Path) -> tuple[str, ...]:
    image, mask = put(raw, "lonely_mask")
    (raw / image).unlink()
    return (mask,)


def without_mask(raw: Path) -> tuple[str, ...]:
    image, mask = put(raw, "lonely_image")
    (raw / mask).unlink()
    return (image,)


def truncated_image(raw: Path) -> tuple[str, ...]:
    image, _ = put(raw, "truncated")
    data = (raw / image).read_bytes()
    (raw / image).write_bytes(data[: len(data) // 2])
    return (image,)


def mask_of_noise(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "noise_bytes", split="test")
    (raw / mask).write_bytes(bytes(range(256)))
    return (mask,)


def bomb(path: Path) -> None:
    """A PNG of some bytes whose header claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(60001))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def image_bomb(raw: Path) -> tuple[str, ...]:
    image, _ = put(raw, "image_bomb")
    bomb(raw / image)
    return (image,)


def mask_bomb(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "mask_bomb")
    bomb(raw / mask)
    return (mask,)


def swapped_axes(raw: Path) -> tuple[str, ...]:
    image, mask = put(raw, "swapped", size=(48, 64))
    save_png(raw / mask, load_mask(raw / mask).T)
    return (mask, image)


def other_size(raw: Path) -> tuple[str, ...]:
    image, mask = put(raw, "other_size")
    save_png(raw / mask, load_mask(raw / mask)[:60])
    return (mask, image)


def empty_mask(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "empty")
    save_png(raw / mask, np.zeros((64, 64), bool))
    return (mask,)


def full_mask(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "full")
    save_png(raw / mask, np.ones((64, 64), bool))
    return (mask,)


def grey_mask(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "classes_as_greys")
    grey = np.zeros((64, 64), np.uint8)
    grey[4:34, 4:34], grey[34:60, 34:60] = 85, 170
    Image.fromarray(grey).save(raw / mask)
    return (mask,)


def thin_mask(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "thin", size=(512, 512))
    line = np.zeros((512, 512), bool)
    line[200, 20:480] = True
    save_png(raw / mask, line)
    return (mask,)


def flat_image(raw: Path) -> tuple[str, ...]:
    image, _ = put(raw, "flat")
    save_png(raw / image, np.full((64, 64, 3), 7, np.uint8))
    return (image,)


def tiny_image(raw: Path) -> tuple[str, ...]:
    return (put(raw, "tiny", size=(9, 64))[0],)


def long_image(raw: Path) -> tuple[str, ...]:
    return (put(raw, "long", size=(17, 800))[0],)


def duplicate(raw: Path) -> tuple[str, ...]:
    first, _ = put(raw, "twice_a")
    second, _ = put(raw, "twice_b")
    shutil.copyfile(raw / first, raw / second)
    return (first, second)


def near_duplicate(raw: Path) -> tuple[str, ...]:
    first, _ = put(raw, "near_a")
    second, _ = put(raw, "near_b")
    encoded_again(raw / first, raw / second)
    return (first, second)


def leak(raw: Path) -> tuple[str, ...]:
    first, _ = put(raw, "leak_a")
    second, _ = put(raw, "leak_b", split="test")
    shutil.copyfile(raw / first, raw / second)
    return (first, second)


def near_leak(raw: Path) -> tuple[str, ...]:
    first, _ = put(raw, "z_near_leak")
    second, _ = put(raw, "a_near_leak", split="test")
    encoded_again(raw / second, raw / first)
    return (first, second)


def encoded_again(source: Path, target: Path) -> None:
    """Put what ``source`` shows at ``target``, larger and through JPEG; its mask grows with it."""
    buffer = io.BytesIO()
    Image.fromarray(load_image(source)).resize((80, 80)).save(buffer, "JPEG", quality=70)
    save_png(target, decode_image(buffer.getvalue(), target.name))
    mask = target.parents[1] / "masks" / target.name
    save_png(mask, cv2.resize(load_mask(mask).astype(np.uint8), (80, 80), interpolation=cv2.INTER_NEAREST) > 0)


def repeated_mask(raw: Path) -> tuple[str, ...]:
    _, first = put(raw, "repeated_a")
    _, second = put(raw, "repeated_b", split="test")
    shutil.copyfile(raw / first, raw / second)
    return (first, second)


def shared_mask(raw: Path) -> tuple[str, ...]:
    first, mask = put(raw, "shared_a")
    second, unused = put(raw, "shared_b")
    (raw / unused).unlink()
    return (mask, first, second)


def points_outside(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "points_outside")
    set_points(raw / mask, [[[100.0, 100.0], [900.0, 900.0]], [1, 1]])
    return (mask,)


def points_broken(raw: Path) -> tuple[str, ...]:
    _, mask = put(raw, "points_broken", split="test")
    set_points(raw / mask, [[[100.0, 100.0]], [1, 1]])
    return (mask,)


def set_points(mask: Path, entry: list[Any]) -> None:
    path = mask.parent / "points.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), mask.name: entry}))


PLANTED: list[tuple[str, Planter]] = [
    ("image.missing", without_image),
    ("mask.missing", without_mask),
    ("image.unreadable", truncated_image),
    ("mask.unreadable", mask_of_noise),
    ("image.too_large", image_bomb),
    ("mask.too_large", mask_bomb),
    ("mask.swapped_axes", swapped_axes),
    ("mask.size", other_size),
    ("mask.empty", empty_mask),
    ("mask.full", full_mask),
    ("mask.not_binary", grey_mask),
    ("mask.thin", thin_mask),
    ("image.flat", flat_image),
    ("image.odd_size", tiny_image),
    ("image.odd_size", long_image),
    ("image.duplicate", duplicate),
    ("image.near_duplicate", near_duplicate),
    ("leak.exact", leak),
    ("leak.near", near_leak),
    ("mask.repeated", repeated_mask),
    ("mask.shared", shared_mask),
    ("points.outside", points_outside),
    ("points.unreadable", points_broken),
]
SHARED = {"shared_b": "shared_a"}


def test_every_planted_defect_is_found_and_nothing_else(tmp_path: Path) -> None:
    clean_tree(tmp_path)
    expected = {(check, SEVERITY_OF[check], planter(tmp_path)) for check, planter in PLANTED}
    assert len(expected) == len(PLANTED)
    labels = {f"natural_{index:04d}": "common" for index in range(NUM_CLEAN)} | {"tiny": "rare"}
    found = check_all(collect(tmp_path, labels, SHARED), PARAMS)
    expected.add(("classes.imbalance", "warning", ()))
    assert {(one.check, one.severity, one.files) for one in found} == expected
    assert len(found) == len(expected)
    whole_domain = {"foreground.large", "foreground.small"}
    assert {check for check, _, _ in expected} | whole_domain == set(SEVERITY_OF), "a check that nothing plants"


@pytest.mark.parametrize(("check", "planter"), PLANTED, ids=[planter.__name__ for _, planter in PLANTED])
def test_a_defect_alone_is_found_alone(tmp_path: Path, check: str, planter: Planter) -> None:
    write_domain(tmp_path, "natural", 2, 1, 64, 0)
    for split in ("train", "test"):
        (tmp_path / split / "masks" / "points.json").write_text("{}")
    files = planter(tmp_path)
    assert [(one.check, one.files) for one in check_all(collect(tmp_path, shared=SHARED), PARAMS)] == [(check, files)]


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
    clean_tree(tmp_path)
    for _, planter in PLANTED:
        planter(tmp_path)
    samples = collect(tmp_path, shared=SHARED)
    assert check_all(samples[::-1], PARAMS) == check_all(samples, PARAMS)
    twins = similar_images(samples, PARAMS)
    assert similar_images(samples[::-1], PARAMS) == twins
    usable = [one for one in samples if all(found.severity != "error" for found in check_sample(one, PARAMS))]
    assert check_domain(usable, PARAMS, twins) == check_domain(usable, PARAMS), "twins of more samples do no harm"
