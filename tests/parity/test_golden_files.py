"""The recorded numbers are in the repository, small, unchanged, and missed when they are not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
MAX_BYTES = 200_000
SHA256 = {
    "forgetting": "924affddfcf46ce9c02274b9a2ed475198d38a1a443205220e64ee9dfaa4f7a0",
    "gradients_sam1": "6d026ac0693d51d58869752614a8f2cd845fcb9caf8e00e6dd7fa8512128cdc1",
    "gradients_sam2": "ec9522aeb9ae7363d2aed4791613c15412d39c3d82fbb485e6e51d3b8ae07c52",
    "heatmap": "66f77a02e992e1496374d57f7d25de07039dc9fdcdbc7cad405079210fb4d4ea",
    "losses": "f98be130992685bde388e6b934fe073e46191a4dbcf2b36afa884295c9c5d511",
    "lr_schedule": "d4b41ee691bfd0ca55f798136fdef91151761b18f8aba8f2428a8cab11b26764",
    "metrics": "dac3dc0cddd0b519a6ed7110eee1f27b067ffe48394765e5c30813df41d504d0",
    "points": "ecfb59ebd32bf1751823109a2bbd3f45184d26baa09805ae2a4afb9a4841482c",
    "preprocess": "9220c72926417808948b40365c100b7f95e3d38d438607ac382cdcfa01d3091d",
    "released_module_checksums": "0a4fcec10647713c09997c0ee4c7595d0ad2475dfa1ad726f32f840dc8ca3576",
    "sam1_forward": "93c6fce71547b7ed766f58853f146169b75c136dd6561a55aba23a9d020f2d33",
    "sam2_forward": "ee587b0625e50f7508f51c94ccb134deb8abfcc18d890c0e8cd0555a8be2209e",
    "selector": "63b2536ba45566bc498624545522d09edf07e24b342ef61c11711b99dcd9b881",
}


def test_every_file_is_here_and_unchanged() -> None:
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.glob("*.npz")}
    assert found == SHA256


def test_files_are_small_and_hold_numbers_only() -> None:
    for path in GOLDEN.glob("*.npz"):
        assert path.stat().st_size <= MAX_BYTES, path.name
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "biufU" for name in arrays.files), path.name


def test_a_missing_file_fails_and_never_skips(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    with pytest.raises(FileNotFoundError, match=r"tests/golden/nothing\.npz is missing; next: git checkout"):
        golden("nothing")
