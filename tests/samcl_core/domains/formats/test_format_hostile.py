"""Whatever stands in place of a value of an annotation file: a clear error or a mask, nothing else, never slow."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samcl_core.domains.formats import ReadOptions, detect_format, get_format
from samcl_core.errors import SamclError

SCALARS: list[Any] = [None, True, 0, -1, 10**30, 1e999, 1e-320, float("nan")]
VALUES = [*SCALARS, "", "x", "\ud800", "a\x00b", "../x", "[", [], [[]], {}, {"a": 1}]
TEXTS = ["", "-1", "1e999", "nan", "x", "9" * 5000, "1;2", "1,2;3", "../x", "é", "0 0", "&#1;", ",", ";"]
NUM_TRIES = 150


def _read(name: str, root: Path) -> int:
    """Everything that can be asked of a source; how much of it was said to be wrong."""
    num_wrong = 0
    try:
        entries = get_format(name).scan(root, ReadOptions())
    except SamclError as exc:
        assert exc.message and len(exc.message) < 2000
        return 1
    for entry in entries:
        assert entry.path.relative_to(root)
        if entry.annotation is not None:
            assert all(file.relative_to(root) for file in entry.annotation.files)
            entry.annotation.digest()
            try:
                entry.annotation.instances((16, 12), 128)
            except SamclError as exc:
                assert exc.message and len(exc.message) < 2000
                num_wrong += 1
    return num_wrong


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*at, key))


def _replaced(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    if not at:
        return other
    changed = value.copy()
    changed[at[0]] = _replaced(value[at[0]], at[1:], other)
    return changed


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "annotations/instances_train2017.json"),
        ("roboflow", "valid/_annotations.coco.json"),
        ("labelme", "data_annotated/2011_000003.json"),
    ],
)
def test_values_of_json_files(sample: Any, name: str, file: str) -> None:
    root = sample(name)
    content = json.loads((root / file).read_text())
    draw = random.Random(name)
    tries = [(at, other) for at in _places(content) for other in VALUES]
    num_wrong = 0
    for at, other in draw.sample(tries, NUM_TRIES):
        (root / file).write_text(json.dumps(_replaced(content, at, other)), encoding="utf-8")
        num_wrong += _read("coco" if name == "roboflow" else name, root) > 0
    assert num_wrong > NUM_TRIES / 4


@pytest.mark.parametrize(
    ("name", "file", "pattern"),
    [
        ("cvat", "annotations.xml", r'(?<==")[^"]*(?=")'),
        ("yolo", "labels/train/a.txt", r"\S+"),
        ("yolo", "data.yaml", r"(?<=: )\S+"),
        ("voc", "ImageSets/Segmentation/train.txt", r"\S+"),
    ],
)
def test_words_of_text_files(sample: Any, name: str, file: str, pattern: str) -> None:
    root = sample(name)
    content = (root / file).read_text()
    words = list(re.finditer(pattern, content))
    tries = [(word, other) for word in words for other in TEXTS]
    draw = random.Random(file)
    for word, other in draw.sample(tries, min(NUM_TRIES, len(tries))):
        (root / file).write_text(content[: word.start()] + other + content[word.end() :])
        _read(name, root)


def test_pipes_and_links_that_lead_nowhere_or_in_a_circle_are_no_files(every_sample: tuple[str, Path]) -> None:
    name, root = every_sample
    expected = detect_format(root).scan(root, ReadOptions())
    for folder in [root, *(path for path in root.iterdir() if path.is_dir())]:
        for suffix in (".json", ".xml", ".yaml", ".txt"):
            os.mkfifo(folder / f"pipe{suffix}")
            (folder / f"nowhere{suffix}").symlink_to(folder / "nothing here")
            (folder / f"circle{suffix}").symlink_to(folder / f"circle{suffix}")
    assert detect_format(root).name == name
    if name in ("coco", "cvat", "labelme", "voc", "yolo"):
        assert get_format(name).scan(root, ReadOptions()) == expected


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "annotations/instances_train2017.json"),
        ("labelme", "data_annotated/2011_000003.json"),
        ("cvat", "annotations.xml"),
        ("yolo", "labels/train/a.txt"),
        ("yolo", "data.yaml"),
        ("voc", "ImageSets/Segmentation/train.txt"),
        ("voc", "SegmentationClass/2007_000032.png"),
        ("voc", "SegmentationObject/2007_000032.png"),
    ],
)
def test_bytes(sample: Any, name: str, file: str) -> None:
    root = sample(name)
    content = (root / file).read_bytes()
    draw = random.Random(file)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (root / file).write_bytes(damaged[: draw.choice((len(damaged), draw.randrange(len(damaged))))])
        _read(name, root)
