"""Scenes are seeded, quick, different from each other, and hold one object of sensible size."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from samcl_core.domains.formats import detect_format
from samcl_core.domains.images import load_image, load_mask
from samcl_core.domains.scenes import register_scene
from samcl_core.domains.synthetic import MAX_AREA_FRAC, MIN_AREA_FRAC, SCENES, draw, write_domain
from samcl_core.errors import UsageError
from samcl_core.files import digest_files

NAMES = ("polyp", "shadow", "crack", "natural", "lesion", "camouflage", "rail", "metal", "cells", "fields")


def _features(image: np.ndarray) -> np.ndarray:
    """Colour and texture in six numbers: mean of each channel, their deviation, saturation, edge strength."""
    values = image.astype(np.float32) / 255
    edges = np.abs(np.diff(values.mean(axis=2), axis=0)).mean()
    saturation = (values.max(axis=2) - values.min(axis=2)).mean()
    return np.array([*values.mean(axis=(0, 1)), values.std(), saturation, 5 * edges])


def test_every_scene_is_registered_once() -> None:
    assert set(SCENES) == set(NAMES)
    with pytest.raises(ValueError, match="'polyp' is registered already"):
        register_scene("polyp")(SCENES["polyp"])


@pytest.mark.parametrize("scene", NAMES)
def test_pictures_hold_one_object_of_sensible_size(scene: str) -> None:
    images = []
    for index, size in itertools.product(range(6), (64, 128)):
        image, mask = draw(scene, size_px=size, seed=1, split="train", index=index)
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((size, size, 3), np.uint8, (size, size), bool)
        assert MIN_AREA_FRAC <= mask.mean() <= MAX_AREA_FRAC
        parts = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
        assert parts.max() >= 0.9 * mask.sum()
        inside, outside = image[mask].mean(axis=0), image[~mask].mean(axis=0)
        assert scene == "camouflage" or np.abs(inside - outside).max() > 8
        images.append(image.tobytes())
    assert len(set(images)) == len(images)


def test_pictures_depend_on_every_part_of_their_name_and_on_nothing_else() -> None:
    name = {"size_px": 64, "seed": 3, "split": "train", "index": 5}
    image, mask = draw("crack", **name)
    again, mask_again = draw("crack", **name)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    for other in ({"seed": 4}, {"split": "test"}, {"index": 6}):
        assert (draw("crack", **{**name, **other})[0] != image).any()


def test_scenes_can_be_told_apart_by_colour_and_texture() -> None:
    """Nearest class mean over six simple numbers: what a selector sees is far richer."""
    features = {
        (scene, split): np.stack(
            [_features(draw(scene, size_px=64, seed=0, split=split, index=index)[0]) for index in range(8)]
        )
        for scene, split in itertools.product(NAMES, ("train", "test"))
    }
    means = np.stack([features[scene, "train"].mean(axis=0) for scene in NAMES])
    spread = np.concatenate([features[scene, "train"] - means[i] for i, scene in enumerate(NAMES)]).std(axis=0)
    hits = [
        np.abs((features[scene, "test"][:, None] - means) / spread).sum(axis=2).argmin(axis=1) == i
        for i, scene in enumerate(NAMES)
    ]
    assert np.mean(hits) > 0.85


def test_drawing_is_fast() -> None:
    start = time.perf_counter()
    for scene in NAMES:
        draw(scene, size_px=128, seed=0, split="train", index=0)
    assert time.perf_counter() - start < 0.2 * len(NAMES)


def test_a_domain_is_written_in_the_published_layout_with_the_same_bytes(tmp_path: Path) -> None:
    for root in (tmp_path / "a", tmp_path / "b"):
        write_domain(root, "shadow", 3, 2, 64, seed=0)
    digests = digest_files(tmp_path / "a")
    assert digests == digest_files(tmp_path / "b")
    assert len(digests) == 10
    assert detect_format(tmp_path / "a").name == "samcl"
    image, mask = draw("shadow", size_px=64, seed=0, split="test", index=1)
    np.testing.assert_array_equal(load_image(tmp_path / "a/test/images/shadow_0001.png"), image)
    np.testing.assert_array_equal(load_mask(tmp_path / "a/test/masks/shadow_0001.png"), mask)


def test_a_larger_domain_holds_the_smaller_one(tmp_path: Path) -> None:
    write_domain(tmp_path / "small", "rail", 1, 1, 64, seed=0)
    write_domain(tmp_path / "large", "rail", 3, 2, 64, seed=0)
    assert digest_files(tmp_path / "small").items() <= digest_files(tmp_path / "large").items()


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'moon' is unknown, expected one of .*polyp"):
        write_domain(tmp_path / "d", "moon", 1, 1, 64, seed=0)
    with pytest.raises(UsageError, match="8 pixels is too small"):
        draw("polyp", size_px=8, seed=0, split="train", index=0)
    with pytest.raises(UsageError, match="3 training and 0 test"):
        write_domain(tmp_path / "d", "polyp", 3, 0, 64, seed=0)
    assert not (tmp_path / "d").exists()
