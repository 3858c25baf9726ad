"""Images and masks from files: any common mode, upright, whole or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from samcl_core.errors import ImageError
from samcl_core.files import read_bytes

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageInfo",
    "MaskFile",
    "Picture",
    "decode_image",
    "file_bytes",
    "image_info",
    "image_size",
    "load_codes",
    "load_image",
    "load_mask",
    "read_image",
    "read_mask",
    "save_png",
    "turn_upright",
]

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded: a small file can claim any size (Pillow's own limit)."""

MAX_BYTES = 1 << 30
"""Larger files are refused before they are read whole."""

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes that count as an image. What a file really is, its bytes say: a JPEG named ``.png`` is read as a JPEG."""

# Named one by one: Pillow could also open formats that start other programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_HINT = "replace or remove this file"
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageInfo:
    """What a file's header says.

    Attributes:
        width: pixels of the upright image.
        height: pixels of the upright image.
        mode: Pillow's mode (``RGB``, ``L``, ``I;16``, ``P`` ...).
        format: what the bytes are (``JPEG``, ``PNG`` ...), whatever the suffix says.
        orientation: EXIF orientation 1..8; 1 is upright as stored.
    """

    width: int
    height: int
    mode: str
    format: str
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as stored, before the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    @property
    def is_plain(self) -> bool:
        """Every tool reads the file alike: 8 bit RGB or grey, upright as stored."""
        return self.mode in ("RGB", "L") and self.orientation == 1 and self.format != "GIF"


def image_info(path: Path) -> ImageInfo:
    """The header of an image file, without decoding its pixels.

    Raises:
        ImageError: not an image, or larger than ``MAX_PIXELS``.
    """
    with _reading(path), _open(path) as image:
        return _info(image)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright image.

    Raises:
        ImageError: not an image, or larger than ``MAX_PIXELS``.
    """
    info = image_info(path)
    return info.width, info.height


def load_image(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB, upright.

    The EXIF orientation is applied. Grey is repeated, palettes are resolved, an alpha channel is dropped. Values of
    more than 8 bits are shifted from 16 to 8 unless all of them are below 256; floats in 0..1 are scaled.

    Raises:
        ImageError: unreadable, truncated, not an image, or larger than ``MAX_PIXELS``; the message names the file.
    """
    with _reading(path):
        return _rgb(_decode(path)[0])


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """``load_image`` of the bytes of an image file; messages call it ``name``.

    Raises:
        ImageError: as ``load_image``.
    """
    path = Path(name)
    with _reading(path):
        return _rgb(_decode(path, BytesIO(data))[0])


def load_mask(path: Path, threshold: int = 128) -> NDArray[np.bool_]:
    """A mask as (H, W) bool, upright: foreground where the grey value is at least ``threshold``.

    Two kinds of files mean their values otherwise: in a lossless file that holds 0 and 1 only, 1 is foreground; in a
    file with a coloured palette, every index but 0 is.

    Raises:
        ImageError: unreadable, truncated, not an image, or larger than ``MAX_PIXELS``; the message names the file.
    """
    with _reading(path):
        image, info = _decode(path)
        return _mask_of(image, info.format, threshold)[0]


def load_codes(path: Path, *, is_coloured: bool) -> NDArray[np.int32]:
    """The values of a mask file whose values mean classes or objects, (H, W) int32, upright.

    Args:
        path: an indexed, grey (8 or 16 bit) or colour file.
        is_coloured: give each pixel's colour as ``red << 16 | green << 8 | blue``, also of an indexed file. Otherwise
            the index of an indexed file, the value of a grey one, or the common value of a colour file without colour.

    Raises:
        ImageError: unreadable, truncated, not an image, too large, or coloured where values are expected.
    """
    with _reading(path):
        image, info = _decode(path)
        if info.format == "JPEG":
            raise ImageError(f"{path}: a JPEG cannot hold codes of classes exactly", hint="save it as PNG")
        if is_coloured:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
            return np.asarray(red << 16 | green << 8 | blue, dtype=np.int32)
        if image.mode in ("P", "L", "1") or _is_wide(image):
            return np.asarray(image).astype(np.int32)
        pixels = np.asarray(image.convert("RGB"))
        if (pixels != pixels[..., :1]).any():
            raise ImageError(f"{path}: holds colours, expected one value a pixel", hint="give the classes by colour")
        return pixels[..., 0].astype(np.int32)


@dataclass(frozen=True)
class Picture:
    """An image file, read once.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright; smaller than the image where ``read_image`` was allowed to.
        info: what its header says, of the image itself.
    """

    pixels: NDArray[np.uint8]
    info: ImageInfo


@dataclass(frozen=True)
class MaskFile:
    """A mask file, read once.

    Attributes:
        mask: (H, W) bool, upright.
        grey: (H, W) uint8, its values; ``None`` where they are numbers of colours.
        is_clean: it already is what masks are written as: a single-channel PNG of 0 and 255.
    """

    mask: NDArray[np.bool_]
    grey: NDArray[np.uint8] | None
    is_clean: bool


def read_image(path: Path, data: bytes | None = None, *, min_side: int | None = None) -> Picture:
    """``load_image`` and ``image_info`` from one reading; the pixels cannot be written to.

    Args:
        path: the file.
        data: its bytes, where they are known.
        min_side: a smaller picture will do, of sides no shorter than this (or than the image's own): a JPEG is then
            read to its end as always, and takes a fraction of the time.

    Raises:
        ImageError: as ``load_image``.
    """
    with _reading(path):
        image, info = _decode(path, BytesIO(file_bytes(path) if data is None else data), min_side)
        return Picture(np.asarray(image) if image.mode == "RGB" else _rgb(image), info)


def read_mask(path: Path, threshold: int = 128, data: bytes | None = None) -> MaskFile:
    """``load_mask`` and what else there is to know of the file, from one reading.

    Args:
        path: the file.
        threshold: as ``load_mask``, 1..255.
        data: its bytes, where they are known.

    Raises:
        ImageError: as ``load_image``.
    """
    with _reading(path):
        image, info = _decode(path, BytesIO(file_bytes(path) if data is None else data))
        if (info.format, info.mode, info.orientation) == ("PNG", "L", 1):
            grey = np.asarray(image)
            # 255 + 1 is 0: only what is neither black nor white stays above 1.
            if int((grey + np.uint8(1)).max()) <= 1:
                return MaskFile(np.greater_equal(grey, threshold), grey, is_clean=True)
        return MaskFile(*_mask_of(image, info.format, threshold), is_clean=False)


def file_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it cannot be read, or has more than ``MAX_BYTES``.
    """
    with _reading(path):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _too_large(path, f"{size} bytes")
        return read_bytes(path)


def turn_upright(mask: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    """A mask drawn on the stored pixels of an image, turned like that image's EXIF orientation (1..8) turns it."""
    if orientation not in _TURNS:
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).transpose(_TURNS[orientation])) > 0


def save_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    """Write (H, W, 3) uint8 RGB, (H, W) uint8 grey or (H, W) bool (as 0 and 255) as PNG; same pixels, same bytes."""
    values = pixels * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    Image.fromarray(np.ascontiguousarray(values)).save(path, format="PNG", compress_level=6)


def _open(path: Path, data: BytesIO | None = None) -> Image.Image:
    image = Image.open(path if data is None else data, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width}x{image.height} pixels")
    return image


def _decode(path: Path, data: BytesIO | None = None, min_side: int | None = None) -> tuple[Image.Image, ImageInfo]:
    """The upright pixels and what the header said, of ``path`` or of ``data`` in its place."""
    with _open(path, data) as image:
        if min_side is not None and image.format == "JPEG":
            info = _info(image)
            # libjpeg computes 1/2, 1/4 or 1/8 of the size from the same coefficients.
            image.draft(image.mode, (min_side, min_side))
            image.load()
        else:
            image.load()
            info = _info(image)
        return (image.transpose(_TURNS[info.orientation]) if info.orientation in _TURNS else image), info


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Map whatever reading ``path`` raises to an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as exc:  # Pillow's readers raise anything on hostile bytes.
        raise _unreadable(path, exc) from exc


def _info(image: Image.Image) -> ImageInfo:
    # Looking for it costs as much as a small image, and mostly there is nothing to look in.
    may_turn = image.format == "TIFF" or not image.info.keys().isdisjoint(_EXIF_KEYS)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if may_turn else 1
    orientation = orientation if orientation in _TURNS else 1
    width, height = (image.height, image.width) if orientation >= 5 else (image.width, image.height)
    return ImageInfo(width, height, image.mode, str(image.format), orientation)


def _mask_of(image: Image.Image, kind: str, threshold: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8] | None]:
    """The mask, and the grey values it was taken from where they are any."""
    if image.mode == "P" and _is_coloured(image):
        return np.asarray(image) > 0, None
    grey = _grey(image)
    if kind not in ("JPEG", "MPO") and threshold > 1 and int(grey.max(initial=0)) == 1:
        threshold = 1
    return np.greater_equal(grey, threshold), grey


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if _is_wide(image):
        return _to_8_bit(np.asarray(image))
    return np.asarray(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    if not _is_wide(image):
        return np.array(image.convert("RGB"), dtype=np.uint8)
    return np.repeat(_to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)


def _is_wide(image: Image.Image) -> bool:
    """More than 8 bits a value: 16 or 32 bit integers (``I``, ``I;16``) or floats (``F``)."""
    return image.mode.startswith("I") or image.mode == "F"


def _is_coloured(image: Image.Image) -> bool:
    """Does any palette entry that the pixels use have a colour?"""
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    colours = palette[used[used < len(palette)]]
    return bool((colours != colours[:, :1]).any())


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Wide integers or floats to 0..255. NaN counts as 0."""
    if np.issubdtype(values.dtype, np.floating):
        numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        scale = 255.0 if numbers.max(initial=0.0) <= 1.0 else 1.0
        return np.rint(np.clip(numbers * scale, 0, 255)).astype(np.uint8)
    whole = np.clip(values.astype(np.int64), 0, 65535)
    return (whole >> 8 if whole.max(initial=0) > 255 else whole).astype(np.uint8)


def _too_large(path: Path, found: str) -> ImageError:
    return ImageError(
        f"{path}: too large ({found}), expected at most {MAX_PIXELS} pixels and {MAX_BYTES} bytes",
        hint="shrink it or cut it into tiles",
    )


def _unreadable(path: Path, exc: Exception) -> ImageError:
    if isinstance(exc, FileNotFoundError):
        return ImageError(f"{path}: no such file", hint="restore this file or remove its partner")
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(path, str(exc))
    why = "not an image" if isinstance(exc, UnidentifiedImageError) else " ".join(str(exc).split())
    return ImageError(f"{path}: cannot be read: {why or type(exc).__name__}", hint=_HINT)
