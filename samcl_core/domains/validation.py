"""What a source's files hold: every sample of it, read whole, with the reason why it cannot be used where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samcl_core.config import SourceParams
from samcl_core.domains.annotations import Instance, MaskFiles, union_of
from samcl_core.domains.formats import SourceImage
from samcl_core.domains.images import ImageInfo, image_info, load_image, read_annotation, turn_upright
from samcl_core.errors import DataError, ImageError
from samcl_core.files import sha256_file

__all__ = ["Checked", "check_source", "masks_of"]


@dataclass(frozen=True)
class Checked:
    """One sample of a source and what was found in its files.

    Attributes:
        source: the image and its annotation.
        key: the image's (or mask's) path relative to the raw folder; sorts and names the sample.
        part: number of the object among those of the image, from 0; ``None`` where all objects are one sample.
        split: the source's split, later the assigned one.
        label: the object's class; of all objects where they have one in common.
        width: of the upright image in pixels.
        height: of the upright image in pixels.
        orientation: EXIF orientation of the image.
        turn_mask: the annotation was drawn on the stored pixels, so it needs the image's turn.
        keep_image: the image file can be copied byte for byte.
        keep_mask: the mask file can be copied byte for byte.
        foreground_frac: share of foreground pixels.
        image_sha256: of the source's image file.
        reason: why the sample cannot be used; empty when it can.
    """

    source: SourceImage
    key: str
    part: int | None = None
    split: str | None = None
    label: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    turn_mask: bool = False
    keep_image: bool = True
    keep_mask: bool = True
    foreground_frac: float = 0.0
    image_sha256: str = ""
    reason: str = ""


def check_source(source: SourceImage, raw: Path, options: SourceParams, threshold: int) -> list[Checked]:
    """Read the files of one image whole; never raises for what they hold.

    Returns:
        One sample, or one for each object where ``options.instances`` says so, or one with a reason. Nothing where the
        options leave out all of it: a negative, or an image whose objects are of other classes or too small.
    """
    checked = Checked(source, source.path.relative_to(raw).as_posix(), split=source.split)
    if source.image is None:
        return [replace(checked, reason="the mask has no image")]
    if source.annotation is None and not source.is_negative:
        return [replace(checked, reason="the image has no mask")]
    if source.is_negative and options.negatives != "keep":
        return []
    try:
        info = image_info(source.image)
        load_image(source.image)
        instances, is_clean = _instances(source, info, threshold)
    except (ImageError, DataError) as exc:
        return [replace(checked, reason=exc.message.replace(f"{raw}/", "").removeprefix(f"{checked.key}: "))]
    checked = replace(
        checked,
        width=info.width,
        height=info.height,
        orientation=info.orientation,
        keep_image=info.is_plain,
        image_sha256=sha256_file(source.image),
    )
    return _samples(checked, info, instances, options, is_clean=is_clean, threshold=threshold)


def masks_of(samples: Sequence[Checked], options: SourceParams, threshold: int) -> list[NDArray[np.bool_]]:
    """The (H, W) bool masks of samples of one image that can be used, upright, read again from its source.

    Raises:
        ImageError: a file changed since it was checked, and cannot be read.
        DataError: an annotation changed so.
    """
    checked = samples[0]
    assert checked.source.image is not None
    info = image_info(checked.source.image)
    instances, _ = _instances(checked.source, info, threshold)
    union = [instances[at] for at in _chosen(instances, options)]
    drawn = [
        union_of(union if sample.part is None else [instances[sample.part]], (info.width, info.height))
        for sample in samples
    ]
    return [turn_upright(mask, checked.orientation) if checked.turn_mask else mask for mask in drawn]


def _instances(source: SourceImage, info: ImageInfo, threshold: int) -> tuple[list[Instance], bool]:
    """All objects of an image, and whether the mask file already is what masks are written as."""
    annotation = source.annotation
    if annotation is None:
        return [], False
    if isinstance(annotation, MaskFiles) and len(annotation.paths) == 1:
        mask, is_clean = read_annotation(annotation.paths[0], threshold)
        return [Instance(mask, annotation.labels[0] if annotation.labels else "")], is_clean
    # Where an annotation has no size of its own it belongs to the image as people see it.
    return annotation.instances((info.width, info.height), threshold), False


def _samples(
    checked: Checked,
    info: ImageInfo,
    instances: Sequence[Instance],
    options: SourceParams,
    *,
    is_clean: bool,
    threshold: int,
) -> list[Checked]:
    """The samples of an image whose files could be read."""
    shapes = {instance.mask.shape for instance in instances} or {(info.height, info.width)}
    height, width = next(iter(shapes))
    turn = (
        info.orientation != 1 and (width, height) != (info.width, info.height) and (width, height) == info.stored_size
    )
    if not turn and (width, height) != (info.width, info.height):
        found = f"the mask is {width}x{height} pixels, the image {info.width}x{info.height}"
        return [replace(checked, reason=found)]
    if not any(instance.mask.any() for instance in instances):
        if checked.source.is_negative:
            return [replace(checked, keep_mask=False)]
        single = isinstance(checked.source.annotation, MaskFiles)
        return [replace(checked, reason=f"the mask is empty: no pixel reaches {threshold}" if single else "no object")]
    chosen = _chosen(instances, options)
    if not chosen:
        return []
    checked = replace(checked, turn_mask=turn, keep_mask=is_clean and not turn)
    if options.instances != "each":
        mask = union_of([instances[at] for at in chosen], (width, height))
        labels = {instances[at].label for at in chosen}
        label = next(iter(labels)) if len(labels) == 1 else ""
        return [replace(checked, label=label, foreground_frac=float(mask.mean()))]
    objects = [at for at in chosen if not instances[at].is_crowd]
    return [
        replace(checked, part=at, label=instances[at].label, foreground_frac=float(instances[at].mask.mean()))
        for at in objects
    ]


def _chosen(instances: Sequence[Instance], options: SourceParams) -> list[int]:
    """Numbers of the objects that the options do not leave out."""
    min_area = options.min_area_px or 1
    return [
        at
        for at, instance in enumerate(instances)
        if (options.classes is None or instance.label in options.classes)
        and int(np.count_nonzero(instance.mask)) >= min_area
    ]
