"""Near-duplicates: found through encoding, size and brightness, and never between pictures that are different."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.similarity import _num_bits, fingerprint, near_duplicates
from samcl_core.domains.synthetic import SCENES, draw

Rgb = np.ndarray[Any, np.dtype[np.uint8]]


def again(image: Rgb, *, quality: int = 75, scale: float = 1.0, bright: int = 0) -> Rgb:
    """The picture scaled, made brighter and encoded as JPEG."""
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    pixels = np.asarray(Image.fromarray(image).resize(size)).astype(int) + bright
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def groups_of(images: list[Rgb], **options: Any) -> list[tuple[int, ...]]:
    found = [fingerprint(image) for image in images]
    return near_duplicates([number for number, _ in found], b"".join(small.tobytes() for _, small in found), **options)


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_copies_are_found_and_nothing_else(scene: str) -> None:
    images = [draw(scene, size_px=128, seed=3, split="train", index=index)[0] for index in range(30)]
    copies = [
        again(images[0], quality=40),
        again(images[1], scale=0.6),
        again(images[2], scale=1.7, quality=60),
        again(images[3], bright=15),
    ]
    assert groups_of([*images, *copies]) == [(0, 30), (1, 31), (2, 32), (3, 33)]


def test_copies_of_large_textures_are_found() -> None:
    """Of large pictures only some pixels are looked at."""
    images = [draw("metal", size_px=700, seed=0, split="train", index=index)[0] for index in range(3)]
    assert groups_of([*images, again(images[1], scale=0.6, quality=60)]) == [(1, 3)]


def test_no_two_small_textures_are_alike() -> None:
    images = [draw(scene, size_px=48, seed=0, split="test", index=i)[0] for scene in sorted(SCENES) for i in range(60)]
    assert groups_of(images) == []


def test_pictures_without_details_are_not_compared() -> None:
    assert groups_of([np.full((64, 64, 3), value, np.uint8) for value in (0, 0, 90, 255)]) == []
    wave = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    shades = [np.repeat((128 + height * wave).astype(np.uint8), 64 * 3).reshape(64, 64, 3) for height in (60, 80)]
    assert groups_of(shades) == []


def test_all_pairs_are_compared_whatever_the_blocks() -> None:
    """Pairs near and far apart in a list longer than a block are found, as a loop over all pairs finds them."""
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**64, 5000, dtype=np.uint64)]
    small = rng.integers(0, 256, (5000, 32, 32), dtype=np.uint8)
    for copy, original in ((4999, 0), (2500, 2499), (4000, 17)):
        hashes[copy], small[copy] = hashes[original] ^ 0b10110, small[original]
    hashes[77] = hashes[3000]  # alike in the hash alone
    assert near_duplicates(hashes, small.tobytes()) == [(0, 4999), (17, 4000), (2499, 2500)]
    assert near_duplicates(hashes, small.tobytes(), max_distance=2) == []


def test_ten_thousand_pictures_take_seconds() -> None:
    rng = np.random.default_rng(1)
    hashes = [int(value) for value in rng.integers(0, 2**64, 10_000, dtype=np.uint64)]
    start = time.perf_counter()
    assert near_duplicates(hashes, bytes(10_000 * 1024)) == []
    assert time.perf_counter() - start < 20


def test_bits_are_counted_with_any_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(2).integers(0, 2**64, 999, dtype=np.uint64)
    words[:3] = 0, 1, 2**64 - 1
    expected = [bin(word).count("1") for word in words.tolist()]
    assert _num_bits(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _num_bits(words).tolist() == expected


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures_have_no_pairs(count: int) -> None:
    assert near_duplicates([7] * count, bytes(1024 * count)) == []


def test_groups_are_connected_pairs() -> None:
    """1 - 4 - 2 and 0 - 3: neighbours differ in three bits, the ends of the chain in six."""
    chain = [0b111, 0b111111, 0b111111111]
    hashes = [0xFF00 << 40, chain[0], chain[2], 0xFF01 << 40, chain[1], 0xAAAA << 20]
    small = np.random.default_rng(3).integers(0, 256, (1, 32, 32), dtype=np.uint8).repeat(6, axis=0)
    assert near_duplicates(hashes, small.tobytes(), max_distance=3) == [(0, 3), (1, 2, 4)]


def test_a_series_without_change_is_one_group() -> None:
    """Every one of 18 million pairs is a near-duplicate."""
    number, small = fingerprint(draw("rail", size_px=64, seed=0, split="train", index=0)[0])
    start = time.perf_counter()
    assert near_duplicates([number] * 6000, small.tobytes() * 6000) == [tuple(range(6000))]
    assert time.perf_counter() - start < 30


def test_pictures_alike_in_the_hash_alone_are_compared_in_bounded_time() -> None:
    small = np.random.default_rng(4).integers(0, 256, (3000, 32, 32), dtype=np.uint8)
    start = time.perf_counter()
    assert near_duplicates([12345] * 3000, small.tobytes()) == []
    assert time.perf_counter() - start < 30
