"""Pictures that show the same: a perceptual hash finds candidates, a comparison of thumbnails confirms them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["HASH_BITS", "THUMBNAIL_PX", "fingerprint", "near_duplicates"]

THUMBNAIL_PX = 32
"""Side of the grey thumbnail: (32, 32) uint8."""

HASH_BITS = 64

_FREQUENCIES = 8
_ENOUGH_PX = 16 * THUMBNAIL_PX
# Small enough for the cache.
_ROWS, _COLUMNS = 64, 4096
# Half a grey level a pixel: less is rounding, and says nothing about the picture.
_MIN_DETAIL = 0.5 * THUMBNAIL_PX
_NUM_LARGE = 4


def fingerprint(image: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
    """The perceptual hash of a picture, and the thumbnail it was computed from.

    The hash says of the 64 lowest frequencies (8 x 8, without the mean) of the 32 x 32 grey thumbnail's cosine
    transform which are above their median (Zauner, "Implementation and benchmarking of perceptual image hash
    functions", 2010). It changes little when a picture is encoded again, scaled or made brighter.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        The hash, 0 .. 2**64 - 1, and the (32, 32) uint8 thumbnail.
    """
    if min(image.shape[:2]) > _ENOUGH_PX:
        # 256 pixels for each of the thumbnail's are as good as thousands, and much faster.
        image = np.asarray(cv2.resize(image, (_ENOUGH_PX, _ENOUGH_PX), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    small = cv2.resize(image, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    thumbnail = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    low = cv2.dct(thumbnail.astype(np.float32))[: _FREQUENCIES + 1, : _FREQUENCIES + 1]
    waves = low[1:, 1:].ravel()
    # Not np.median: it takes longer than all the rest.
    bits = np.packbits(waves > sorted(waves.tolist())[HASH_BITS // 2 - 1])
    return int.from_bytes(bits.tobytes(), "big"), thumbnail


def near_duplicates(
    hashes: Sequence[int], thumbnails: bytes, *, max_distance: int = 8, min_correlation: float = 0.95
) -> list[tuple[int, ...]]:
    """Groups of pictures that show the same, whatever their size, encoding and brightness.

    All pairs of hashes are compared, in blocks: 10,000 pictures take well under a second, and memory does not grow with
    the number of pairs. Candidates count when their thumbnails agree in the details, too: pictures of one series share
    their large shapes (the rail, the vignette), but not their details.

    Args:
        hashes: n numbers of ``fingerprint``.
        thumbnails: their (32, 32) uint8 thumbnails, one after the other.
        max_distance: candidates differ in at most so many bits.
        min_correlation: of the details of two thumbnails, -1..1; from here on they show the same.

    Returns:
        Groups of two or more indices, connected by such pairs; each sorted, in the order of their first members.
    """
    stack = np.frombuffer(thumbnails, dtype=np.uint8).reshape(len(hashes), THUMBNAIL_PX, THUMBNAIL_PX)
    leaders = np.arange(len(hashes))
    for candidates in _candidates(hashes, max_distance):
        # In a series without change every pair is one; what is joined already need not be compared.
        pairs = candidates[leaders[candidates[:, 0]] != leaders[candidates[:, 1]]]
        same = pairs[_agree(stack, pairs, min_correlation)] if len(pairs) else pairs
        if len(same):
            leaders = _joined(leaders, same)
    groups: dict[int, list[int]] = {}
    for index, leader in enumerate(leaders.tolist()):
        groups.setdefault(leader, []).append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _joined(leaders: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The leader of each picture, the smallest index of its group, once these pairs are joined, too."""
    above = leaders.tolist()
    for first, second in pairs.tolist():
        while above[first] != first:
            first = above[first]
        while above[second] != second:
            second = above[second]
        above[max(first, second)] = min(first, second)
    joined = np.array(above)
    while not np.array_equal(joined, joined[joined]):
        joined = joined[joined]
    return joined


def _candidates(hashes: Sequence[int], max_distance: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of pairs (k, 2), i < j, whose hashes differ in at most ``max_distance`` bits."""
    words = np.array(hashes, dtype=np.uint64)
    for top in range(0, len(words), _ROWS):
        for left in range(top, len(words), _COLUMNS):
            block = words[top : top + _ROWS, None] ^ words[None, left : left + _COLUMNS]
            is_near = _num_bits(block) <= max_distance
            if is_near.any():
                near = np.argwhere(is_near) + np.array([top, left])
                yield near[near[:, 0] < near[:, 1]]


def _num_bits(words: NDArray[np.uint64]) -> NDArray[Any]:
    """How many bits of each number are set."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words))
    # numpy 1: sums of neighbouring bits, then of pairs, then of fours (Warren, "Hacker's Delight", section 5-1).
    one, two, four = (np.uint64(number) for number in (1, 2, 4))
    words = words - ((words >> one) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> two) & np.uint64(0x3333333333333333))
    words = (words + (words >> four)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.asarray((words * np.uint64(0x0101010101010101)) >> np.uint64(56))


def _agree(stack: NDArray[np.uint8], pairs: NDArray[np.int64], min_correlation: float) -> NDArray[np.bool_]:
    """Whether the details of the thumbnails of each pair (k, 2) correlate, (k,) bool."""
    rows, row = np.unique(pairs[:, 0], return_inverse=True)
    columns, column = np.unique(pairs[:, 1], return_inverse=True)
    correlations = _details(stack[rows]) @ _details(stack[columns]).T
    return np.asarray(correlations[row, column] >= min_correlation)


def _details(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(k, 1024) float32 of length 1: what is left of a thumbnail without its large shapes; shorter where little is."""
    pixels = thumbnails.astype(np.float32)
    large = _large_shapes()
    details = (pixels - large @ pixels @ large).reshape(len(pixels), -1)
    length = np.linalg.norm(details, axis=1, keepdims=True)
    return np.asarray(details / np.maximum(length, _MIN_DETAIL), dtype=np.float32)


@cache
def _large_shapes() -> NDArray[np.float32]:
    """The (32, 32) projection onto the lowest frequencies of one side."""
    waves = cv2.dct(np.eye(THUMBNAIL_PX, dtype=np.float32), flags=cv2.DCT_ROWS)[:, :_NUM_LARGE]
    return np.asarray(waves @ waves.T, dtype=np.float32)
