"""A clean data set in the published layout, and every kind of defect that can be planted in it."""

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
from PIL import Image

from samcl_core.domains.images import decode_image, load_image, load_mask, save_png
from samcl_core.domains.points import sample_points
from samcl_core.domains.synthetic import draw, write_domain

NUM_CLEAN = 60

Planter = Callable[[Path], tuple[str, ...]]


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
    image, mask = put(raw, "alone_a")
    (raw / image).unlink()
    return (mask,)


def without_mask(raw: Path) -> tuple[str, ...]:
    image, mask = put(raw, "alone_b")
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
