"""Any common mode is read upright; what is broken is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samcl_core.domains.images import (
    decode_image,
    image_info,
    image_size,
    load_image,
    load_mask,
    read_mask,
    save_png,
    turn_upright,
)
from samcl_core.errors import ImageError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    image = load_image(_save(tmp_path / "a.png", Image.fromarray(COLOURS)))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOURS)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.tif" if mode == "CMYK" else "a.png"
    image = load_image(_save(tmp_path / name, Image.fromarray(COLOURS).convert(mode)))
    assert image.shape == (6, 9, 3)
    if mode in ("L", "1", "LA"):
        assert (image == image[:, :, :1]).all()
    if mode == "RGBA":
        np.testing.assert_array_equal(image, COLOURS)


def test_palette_with_transparency_reads_without_warning(tmp_path: Path) -> None:
    indexed = Image.fromarray(COLOURS).convert("P")
    path = _save(tmp_path / "a.png", indexed, transparency=bytes(range(256)))
    np.testing.assert_array_equal(load_image(path), np.asarray(indexed.convert("RGB")))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 256, 65535]], dtype=np.uint16), [0, 1, 255]),
        (np.array([[0, 7, 255]], dtype=np.uint16), [0, 7, 255]),
        (np.array([[0, 512, 70000]], dtype=np.int32), [0, 2, 255]),
        (np.array([[0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 12.0, np.nan]], dtype=np.float32), [0, 12, 0]),
    ],
    ids=["16 bit", "8 bit values in 16", "32 bit", "unit floats", "floats"],
)
def test_wide_values_become_8_bit(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    image = load_image(_save(tmp_path / "a.tif", Image.fromarray(values)))
    assert image[0, :, 0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((4, 8, 3), dtype=np.uint8)
    stored[0, 0] = 255
    path = _save(tmp_path / "a.png", Image.fromarray(stored), exif=exif)
    corners = {1: (0, 0), 2: (0, 7), 3: (3, 7), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (7, 3), 8: (7, 0)}
    image = load_image(path)
    assert image[corners[orientation]].tolist() == [255, 255, 255]
    assert image.sum() == 3 * 255
    width, height = image_size(path)
    assert image.shape[:2] == (height, width) == ((8, 4) if orientation >= 5 else (4, 8))
    assert image_info(path).stored_size == (8, 4)
    np.testing.assert_array_equal(turn_upright(stored[:, :, 0] > 0, orientation), image[:, :, 0] > 0)


def test_the_bytes_decide_not_the_suffix(tmp_path: Path) -> None:
    path = _save(tmp_path / "photo.png", Image.fromarray(COLOURS), format="JPEG")
    assert image_info(path).format == "JPEG"
    assert load_image(path).shape == (6, 9, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    for read in (load_image, load_mask, image_size):
        with pytest.raises(ImageError, match=r"broken\.jpg: cannot be read: not an image"):
            read(path)


def test_bytes_read_as_their_file_and_are_refused_by_their_name(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "a.jpg", Image.fromarray(COLOURS), exif=exif)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "row 3"), load_image(path))
    with pytest.raises(ImageError, match="row 3: cannot be read: not an image"):
        decode_image(b"not an image", "row 3")
    with pytest.raises(ImageError, match="row 4: too large"):
        decode_image(b"P5 100000 100000 255\n", "row 4")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = _save(tmp_path / "cut.img", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format=kind)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ImageError, match=r"cut\.img: cannot be read"):
        load_image(path)


def test_missing_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)


def test_a_huge_claim_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pgm"
    path.write_bytes(b"P5 100000 100000 255\n")
    for read in (load_image, load_mask, image_info):
        with pytest.raises(ImageError, match=r"bomb\.pgm: too large"):
            read(path)


def test_random_bytes_after_a_real_header_never_crash(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.img", Image.fromarray(COLOURS), format="PNG")
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        damaged[RNG.integers(8, len(whole), 6)] = RNG.integers(0, 256, 6)
        path.write_bytes(damaged.tobytes())
        try:
            assert load_image(path).shape[2] == 3
        except ImageError as exc:
            assert str(path) in exc.message


@pytest.mark.parametrize(("threshold", "expected"), [(128, [False, False, True, True]), (255, [False] * 3 + [True])])
def test_mask_threshold(tmp_path: Path, threshold: int, expected: list[bool]) -> None:
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8)))
    file = read_mask(path, threshold)
    assert file.mask.dtype == np.bool_
    assert file.mask[0].tolist() == expected
    assert not file.is_clean


def test_masks_of_zero_and_one(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8)))
    assert load_mask(path)[0].tolist() == [False, True, True]


def test_coloured_palette_masks_hold_indices_and_grey_ones_values(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2]], dtype=np.uint8)
    coloured = Image.fromarray(indices).convert("P")
    coloured.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert load_mask(_save(tmp_path / "c.png", coloured))[0].tolist() == [False, True, True]
    grey = Image.fromarray(indices).convert("P")
    grey.putpalette([255, 255, 255, 0, 0, 0, 200, 200, 200])
    assert load_mask(_save(tmp_path / "g.png", grey))[0].tolist() == [True, False, True]


def test_masks_of_other_modes(tmp_path: Path) -> None:
    truth = np.array([[0, 255, 0, 255]], dtype=np.uint8)
    for mode in ("1", "RGB", "RGBA", "LA"):
        path = _save(tmp_path / f"{mode}.png", Image.fromarray(truth).convert(mode))
        file = read_mask(path)
        assert file.mask[0].tolist() == [False, True, False, True]
        assert not file.is_clean
    wide = _save(tmp_path / "wide.png", Image.fromarray(truth.astype(np.uint16) * 257))
    assert load_mask(wide)[0].tolist() == [False, True, False, True]


def test_saved_masks_are_clean_and_their_bytes_repeat(tmp_path: Path) -> None:
    truth = RNG.random((20, 30)) > 0.5
    save_png(tmp_path / "a.png", truth)
    save_png(tmp_path / "b.png", truth)
    file = read_mask(tmp_path / "a.png")
    np.testing.assert_array_equal(file.mask, truth)
    assert file.is_clean

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
