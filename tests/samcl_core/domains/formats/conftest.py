"""Small data sets, laid out as their documentation says, with numbers that are known."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.annotations import union_of
from samcl_core.domains.formats import ReadOptions, SourceImage, get_format

WIDTH, HEIGHT = 16, 12

Box = tuple[int, int, int, int]


class Tree:
    """Draws files of a data set.

    Attributes:
        root: where they are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, *names: str) -> None:
        """Pictures that no two names share."""
        for name in names:
            random = np.random.default_rng(list(name.encode()))
            pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self._path(name), **_quality(name))

    def mask(self, name: str, *boxes: Box, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        """A mask of 0 and 255 with ``x, y, width, height`` filled."""
        pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
        for x, y, width, height in boxes:
            pixels[y : y + height, x : x + width] = 255
        Image.fromarray(pixels).save(self._path(name), **_quality(name))

    def codes(
        self, name: str, *parts: tuple[Box, int | tuple[int, int, int]], palette: list[int] | None = None
    ) -> None:
        """A mask whose values are given: numbers (indexed with a palette), or colours."""
        is_coloured = any(isinstance(code, tuple) for _, code in parts)
        pixels = np.zeros((HEIGHT, WIDTH, 3) if is_coloured else (HEIGHT, WIDTH), dtype=np.uint8)
        for (x, y, width, height), code in parts:
            pixels[y : y + height, x : x + width] = code
        image = Image.fromarray(pixels)
        if palette:
            image.putpalette(palette)
        image.save(self._path(name))

    def text(self, name: str, content: str) -> None:
        """A text file."""
        self._path(name).write_text(content, encoding="utf-8")

    def pairs(self, images: str, masks: str, boxes: dict[str, list[Box]]) -> None:
        """For each name an image and a mask in their folders; ``{}`` in the folders' patterns is the name."""
        for name, drawn in boxes.items():
            self.image(images.format(name))
            self.mask(masks.format(name), *drawn)

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _quality(name: str) -> dict[str, int]:
    return {"quality": 95, "subsampling": 0} if name.lower().endswith((".jpg", ".jpeg")) else {}


Row = tuple[str | None, list[tuple[str, int]]]


class Found:
    """What a format found, in numbers.

    Attributes:
        entries: as scanned.
    """

    def __init__(self, root: Path, entries: list[SourceImage]) -> None:
        self.root, self.entries = root, entries

    @property
    def rows(self) -> dict[str, Row]:
        """Path of the image (``-`` and the mask's where there is none) to split and (class, pixels) of its objects."""
        return {self._name(entry): (entry.split, _objects(entry)) for entry in self.entries}

    @property
    def pixels(self) -> int:
        """Foreground of all masks."""
        drawn = [entry.annotation for entry in self.entries if entry.annotation is not None]
        return sum(int(union_of(one.instances((WIDTH, HEIGHT), 128), (WIDTH, HEIGHT)).sum()) for one in drawn)

    @property
    def negatives(self) -> set[str]:
        """Images without an object, as the source says."""
        return {self._name(entry) for entry in self.entries if entry.is_negative}

    @property
    def unpaired(self) -> set[str]:
        """What is without partner."""
        return {
            self._name(entry)
            for entry in self.entries
            if entry.image is None or (entry.annotation is None and not entry.is_negative)
        }

    def _name(self, entry: SourceImage) -> str:
        name = entry.path.relative_to(self.root).as_posix()
        return name if entry.image is not None else f"-{name}"


def _objects(entry: SourceImage) -> list[tuple[str, int]]:
    if entry.annotation is None:
        return []
    return [(one.label, int(one.mask.sum())) for one in entry.annotation.instances((WIDTH, HEIGHT), 128)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def scan() -> Callable[..., Found]:
    """``scan(format, root, options)``."""

    def scan(name: str, root: Path, options: ReadOptions | None = None) -> Found:
        return Found(root, get_format(name).scan(root, options or ReadOptions()))

    return scan


def _mvtec(tree: Tree) -> None:
    tree.image("train/good/000.png", "train/good/001.png", "test/good/000.png")
    tree.pairs(
        "test/scratch/{}.png", "ground_truth/scratch/{}_mask.png", {"000": [(1, 1, 4, 2)], "001": [(2, 2, 3, 3)]}
    )
    tree.pairs("test/bent wire/{}.PNG", "ground_truth/bent wire/{}_mask.png", {"a.b ü": [(0, 0, 5, 1), (0, 6, 5, 1)]})
    tree.text("license.txt", "...")


def _isic(tree: Tree) -> None:
    for split, names in {"Training": ("0000000", "0000001"), "Validation": ("0000002",), "Test": ("0000003",)}.items():
        images, masks = f"ISIC2018_Task1-2_{split}_Input", f"ISIC2018_Task1_{split}_GroundTruth"
        tree.pairs(f"{images}/ISIC_{{}}.jpg", f"{masks}/ISIC_{{}}_segmentation.png", {n: [(2, 3, 6, 5)] for n in names})
        tree.text(f"{images}/ATTRIBUTION.txt", "...")
    tree.mask("ISIC2018_Task2_Training_GroundTruth_v3/ISIC_0000000_attribute_globules.png", (0, 0, 9, 9))
    tree.image("ISIC2018_Task3_Training_Input/ISIC_0024306.jpg")


def _istd(tree: Tree) -> None:
    for split, names in {"train": ("1-1", "1-2", "2-1"), "test": ("91-1",)}.items():
        tree.pairs(
            f"{split}/{split}_A/{{}}.png", f"{split}/{split}_B/{{}}.png", {name: [(0, 0, 8, 2)] for name in names}
        )
        tree.image(*(f"{split}/{split}_C/{name}.png" for name in names))


def _cod10k(tree: Tree) -> None:
    for split, number in (("Train", 1), ("Test", 2)):
        cam, non = f"COD10K-CAM-1-Aquatic-2-ClownFish-{number}", f"COD10K-NonCAM-4-Amphibian-68-Toad-{number}"
        tree.image(f"{split}/Image/{cam}.jpg", f"{split}/Image/{non}.jpg")
        tree.mask(f"{split}/GT_Object/{cam}.png", (1, 1, 4, 4), (8, 1, 4, 2))
        tree.codes(f"{split}/GT_Instance/{cam}.png", ((1, 1, 4, 4), (128, 0, 0)), ((8, 1, 4, 2), (0, 128, 0)))
        tree.mask(f"{split}/GT_Edge/{cam}.png", (1, 1, 4, 1))
        for kind in ("GT_Object", "GT_Instance", "GT_Edge"):
            tree.mask(f"{split}/{kind}/{non}.png")
    tree.text("Info/CAM_train.txt", "...")


def _camo(tree: Tree) -> None:
    for split, name in (("Train", "camourflage_00001"), ("Test", "camourflage_00012")):
        tree.pairs(f"Camouflage/Images/{split}/{{}}.jpg", "Camouflage/GT/{}.png", {name: [(3, 3, 5, 5)]})
        tree.pairs(f"Non-Camouflage/Images/{split}/{{}}.jpg", "Non-Camouflage/GT/{}.png", {f"coco_{name[-1]}": []})


def _kvasir(tree: Tree) -> None:
    boxes = {"cju0qkwl35piu0993l0dewei2": [(0, 0, 8, 8)], "cju0qoxqj9q6s0835b43399p4": [(8, 4, 8, 8)]}
    tree.pairs("images/{}.jpg", "masks/{}.jpg", boxes)
    box = {"height": HEIGHT, "width": WIDTH, "bbox": [{"label": "polyp", "xmin": 0, "ymin": 0, "xmax": 8, "ymax": 8}]}
    tree.text("kvasir_bboxes.json", json.dumps(dict.fromkeys(boxes, box)))


def _rsdds(tree: Tree) -> None:
    for kind, boxes in {
        "Type-I": {"rail_1": [(0, 0, 8, 4)], "rail_2": [(8, 8, 8, 4)]},
        "Type-II": {"rail_1": [(4, 4, 8, 8)]},
    }.items():
        folder = f"{kind} RSDDs dataset"
        tree.pairs(f"{folder}/Rail surface images/{{}}.jpg", f"{folder}/GroundTruth/{{}}.jpg", boxes)


def _bsdata(tree: Tree) -> None:
    rows = []
    for name, split, boxes in (
        ("01_200902053521_585000_090_crop_2", "train", [(0, 0, 4, 2), (8, 4, 2, 3)]),
        ("01_200908225219_437500_315_crop_1", "test", [(1, 1, 3, 3)]),
        ("01_200828110014_277500_315_crop_2", None, []),
        ("01_200916071825_597500_315_crop_1", None, []),
    ):
        tree.image(f"data/{name}.jpg")
        label = f"{name}.json" if split else None
        rows.append({"filename": f"{name}.jpg", "train_test_split": split, "type": 2, "annotations": label})
        if label:
            shapes = [_pitting(*box) for box in boxes]
            content = {"version": "4.5.6", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": "x"}
            content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
            tree.text(f"label/{label}", json.dumps(content))
    tree.text("image_data.json", json.dumps({"images": rows}))
    tree.image("demo/demo.png")


def _pitting(x: int, y: int, width: int, height: int) -> dict[str, object]:
    points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    return {"label": "Pitting", "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}


def _samcl(tree: Tree) -> None:
    for split in ("train", "test"):
        tree.pairs(f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png", {f"{split} 1": [(0, 0, 4, 4)]})
        tree.text(f"{split}/masks/points.json", json.dumps({f"{split} 1.png": [[[2, 2]], [1]]}))


def _folders(tree: Tree) -> None:
    tree.pairs("images/{}.jpg", "masks/{}.png", {"a": [(0, 0, 4, 4)], "b": [(4, 4, 4, 4)]})


def _beside(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SAMPLES: dict[str, tuple[str, Callable[[Tree], None]]] = {
    "published": ("samcl", _samcl),
    "mvtec": ("mvtec", _mvtec),
    "isic": ("isic", _isic),
    "istd": ("istd", _istd),
    "cod10k": ("cod10k", _cod10k),
    "camo": ("cod10k", _camo),
    "kvasir": ("kvasir", _kvasir),
    "rsdds": ("rsdds", _rsdds),
    "bsdata": ("bsdata", _bsdata),
    "folders": ("folders", _folders),
    **_beside("annotation_samples").SAMPLES,
}
"""Name of a sample tree to the format it has and what draws it."""


@pytest.fixture
def sample(tree: Tree) -> Callable[[str], Path]:
    """Draws the sample tree of this name; returns where it is."""

    def draw(name: str) -> Path:
        SAMPLES[name][1](tree)
        return tree.root

    return draw


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "every_sample" in metafunc.fixturenames:
        metafunc.parametrize("every_sample", list(SAMPLES), indirect=True)


@pytest.fixture
def every_sample(request: pytest.FixtureRequest, tree: Tree) -> tuple[str, Path]:
    """(format, root) of each sample tree."""
    name, draw = SAMPLES[request.param]
    draw(tree)
    return name, tree.root
