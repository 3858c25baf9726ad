"""Masks travel as text and come back bit for bit; run lengths are those of the COCO tools."""

from __future__ import annotations

import numpy as np
import pytest

from samcl_core.errors import DataError
from samcl_core.masks import mask_from_rle, mask_to_rle
from samcl_core.serving import mask_from_png, mask_to_png

RNG = np.random.default_rng(3)
MASKS = {
    "noise": RNG.random((37, 23)) > 0.5,
    "sparse": RNG.random((400, 300)) > 0.999,
    "empty": np.zeros((5, 7), bool),
    "full": np.ones((5, 7), bool),
    "pixel": np.ones((1, 1), bool),
    "block": np.pad(np.ones((90, 40), bool), ((300, 5), (7, 200))),
}


@pytest.mark.parametrize("name", MASKS)
def test_both_forms_come_back(name: str) -> None:
    mask = MASKS[name]
    np.testing.assert_array_equal(mask_from_png(mask_to_png(mask)), mask)
    rle = mask_to_rle(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(mask_from_rle(rle), mask)


def test_the_text_is_cocos() -> None:
    # By hand after cocoapi's rleToString: columns first; from the fourth run on, differences to the run two before.
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[0, 2] = mask[2, 3] = True  # runs 4 3 4 1
    assert mask_to_rle(mask) == {"size": [3, 4], "counts": "434N"}  # 1 - 3 = -2: 30 = 0x1e, "0" + 30
    assert mask_to_rle(np.ones((1, 3), bool))["counts"] == "03"
    assert mask_to_rle(np.zeros((5, 5), bool))["counts"] == "i0"  # 25 = 0x19 needs a second group: its sign bit is set
    assert mask_to_rle(np.zeros((10, 10), bool))["counts"] == "T3"  # 100 = 3 * 32 + 4


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(DataError, match=r"add up to 3, expected 2 x 2 = 4"):
        mask_from_rle({"size": [2, 2], "counts": "03"})
    with pytest.raises(DataError, match="no base64 of a PNG"):
        mask_from_png("AAAA")
