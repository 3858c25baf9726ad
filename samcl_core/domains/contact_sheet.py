"""A contact sheet of a domain: pictures with their masks, boxes and points drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samcl_core.domains.findings import printable
from samcl_core.domains.images import load_image, load_mask
from samcl_core.domains.layout import Sample
from samcl_core.domains.points import box_of
from samcl_core.drawing import Rgb, draw_box, fit_within, overlay, to_pixels
from samcl_core.progress import Progress, silent

__all__ = ["contact_sheet", "pick_samples"]

_MARGIN, _CAPTION, _HEAD = 12, 34, 40
_INK, _SOFT = (31, 41, 51), (91, 103, 115)


def pick_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """At most ``count`` of the samples, sorted by id: those that a sha256 of ``seed`` and their id puts first."""

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}:view:{sample.id}".encode("utf-8", "surrogateescape")).digest()

    return sorted(sorted(samples, key=rank)[:count], key=lambda sample: sample.id)


def contact_sheet(
    samples: Sequence[Sample],
    *,
    title: str = "",
    columns: int | None = None,
    tile_px: int = 320,
    progress: Progress = silent,
) -> Rgb:
    """Draw samples side by side, a caption below each.

    The mask is tinted and outlined in green; foreground points are blue, background points orange; the box is yellow,
    that of the mask where the domain has no boxes of its own.

    Args:
        samples: at least one; their files are read.
        title: printed above.
        columns: at most so many in a row; ``None`` makes the sheet about square, of four or more.
        tile_px: long side of each picture.
        progress: called after every sample.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no sample.
        ImageError: a file cannot be read.
    """
    if not samples:
        raise ValueError("a contact sheet needs at least one sample, found none")
    # A long sheet would pass the limits of JPEG (65,535 pixels a side) and WebP (16,383).
    columns = min(columns or max(4, math.isqrt(len(samples) - 1) + 1), len(samples))
    rows = -(-len(samples) // columns)
    head = _HEAD if title else _MARGIN
    size = (_MARGIN + columns * (tile_px + _MARGIN), head + rows * (tile_px + _CAPTION + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((_MARGIN, 12), printable(title), fill=_INK, font=ImageFont.load_default(16))
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        left, top = _MARGIN + column * (tile_px + _MARGIN), head + row * (tile_px + _CAPTION + _MARGIN)
        tile, about = _tile(sample, tile_px)
        # At the bottom of its square, above its caption.
        sheet.paste(Image.fromarray(tile), (left + (tile_px - tile.shape[1]) // 2, top + tile_px - tile.shape[0]))
        pen.text((left, top + tile_px + 3), _shortened(sample.id, font, tile_px), fill=_INK, font=font)
        pen.text((left, top + tile_px + 18), _shortened(about, font, tile_px), fill=_SOFT, font=font)
        progress("drawing", number + 1, len(samples))
    return np.array(sheet)


def _tile(sample: Sample, tile_px: int) -> tuple[Rgb, str]:
    """The drawn picture, and what is said about it."""
    image, mask = load_image(sample.image), load_mask(sample.mask)
    tile, small = fit_within(image, mask, tile_px)
    height, width = tile.shape[:2]
    drawn = overlay(tile, None, small, to_pixels(sample.points, width, height), sample.labels, alpha=0.25)
    box = sample.box or (box_of(mask) if mask.any() else None)
    if box is not None:
        corners = to_pixels([box[:2], box[2:]], width, height)
        draw_box(drawn, (corners[0, 0], corners[0, 1], corners[1, 0], corners[1, 1]))
    points = f"{sum(sample.labels)} + {len(sample.labels) - sum(sample.labels)} points"
    return drawn, f"{sample.width}x{sample.height}, {mask.mean():.1%} foreground, {points}"


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """The text, or its end where it is too wide: names of a data set differ at their ends."""
    text = printable(text)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"...{text}") > width_px:
        text = text[1:]
    return f"...{text}"
