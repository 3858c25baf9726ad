"""Which findings a report shows, and how: small pictures with the mask outlined."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from samcl_core.domains.checks import SampleFacts
from samcl_core.domains.findings import Finding, sort_findings
from samcl_core.drawing import Mask, Rgb, fit_within, overlay

__all__ = ["Picture", "View", "jpeg", "view_loader", "worst_pictures"]

_SIDE_PX = 280
_QUALITY = 80
_MAX_VIEWS = 2


@dataclass(frozen=True)
class View:
    """One image of a finding.

    Attributes:
        file: the image's path relative to the raw folder.
        image: (H, W, 3) uint8 RGB, small.
    """

    file: str
    image: Rgb


@dataclass(frozen=True)
class Picture:
    """A finding and what its files show, at most two of them."""

    finding: Finding
    views: tuple[View, ...]


def worst_pictures(
    findings: Sequence[Finding], load: Callable[[str], View | None], limit: int = 12
) -> tuple[Picture, ...]:
    """Pictures of the worst findings: the first of every check, then the second of every check, and so on.

    Args:
        findings: all of them.
        load: gives the view of a file name of a finding, ``None`` where there is nothing to show.
        limit: at most so many pictures.
    """
    pictures: list[Picture] = []
    for found in _by_turns(findings):
        if len(pictures) == limit:
            break
        views: dict[str, View] = {}
        for file in found.files:
            view = load(file) if len(views) < _MAX_VIEWS else None
            if view is not None:
                views[view.file] = view
        if views:
            pictures.append(Picture(found, tuple(views.values())))
    return tuple(pictures)


def view_loader(
    samples: Sequence[SampleFacts], read: Callable[[int], tuple[Rgb | None, Mask | None]], side_px: int = _SIDE_PX
) -> Callable[[str], View | None]:
    """``load`` for ``worst_pictures``: a file name stands for the first sample with this image or mask.

    Args:
        samples: what the findings are about.
        read: number of a sample to its upright image and its mask, each ``None`` where it cannot be read. A mask of
            another size than the image is shown beside it.
        side_px: long side of a view.
    """
    numbers: dict[str, int] = {}
    for files in ([sample.image_file for sample in samples], [sample.mask_file for sample in samples]):
        for number, file in enumerate(files):
            if file:
                numbers.setdefault(file, number)

    def load(file: str) -> View | None:
        if file not in numbers:
            return None
        number = numbers[file]
        image, mask = read(number)
        drawn = _drawn(image, mask, side_px)
        return None if drawn is None else View(samples[number].image_file or file, drawn)

    return load


def jpeg(image: Rgb) -> bytes:
    """(H, W, 3) uint8 RGB as a small JPEG; same pixels, same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _drawn(image: Rgb | None, mask: Mask | None, side_px: int) -> Rgb | None:
    if image is None and mask is None:
        return None
    if image is not None and (mask is None or mask.shape == image.shape[:2]):
        picture, fitted = fit_within(image, mask, side_px)
        return overlay(picture, None, fitted, alpha=0.15)
    alone = [] if image is None else [fit_within(image, None, side_px)[0]]
    if mask is not None:
        grey = np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)
        alone.append(fit_within(grey, None, side_px)[0])
    return _side_by_side(alone)


def _side_by_side(pictures: Sequence[Rgb]) -> Rgb:
    height, gap = max(picture.shape[0] for picture in pictures), 6
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    sheet, left = np.full((height, width, 3), 127, dtype=np.uint8), 0
    for picture in pictures:
        sheet[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return sheet


def _by_turns(findings: Sequence[Finding]) -> Iterator[Finding]:
    queues: dict[str, list[Finding]] = {}
    for found in sort_findings(findings):
        queues.setdefault(found.check, []).append(found)
    for turn in range(max(map(len, queues.values()), default=0)):
        yield from (queue[turn] for queue in queues.values() if turn < len(queue))
