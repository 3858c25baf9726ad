"""What a source's files hold: every sample of it, read whole, with what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samcl_core.config import SourceParams
from samcl_core.domains.annotations import Annotation, Instance, MaskFiles, union_of
from samcl_core.domains.checks import CheckParams, SampleFacts, check_sample
from samcl_core.domains.facts import image_facts, mask_facts, point_facts
from samcl_core.domains.findings import Finding
from samcl_core.domains.formats import SourceImage
from samcl_core.domains.images import ImageInfo, Picture, file_bytes, image_info, read_image, read_mask, turn_upright
from samcl_core.domains.similarity import THUMBNAIL_PX
from samcl_core.errors import DataError, ImageError, SamclError

__all__ = ["Checked", "Measured", "Memory", "check_source", "masks_of"]

_FACTS_PX = 2 * THUMBNAIL_PX
"""Sides of a picture that is large enough to measure: of a JPEG of 512 pixels, the means of its blocks of 8 x 8."""


@dataclass(frozen=True)
class Measured:
    """What the files of one sample hold, whatever counts as wrong.

    Attributes:
        facts: what was measured; its files name the sample.
        part: number of the object among those of the image, from 0; ``None`` where all objects are one sample.
        orientation: EXIF orientation of the image.
        turn_mask: the annotation was drawn on the stored pixels, so it needs the image's turn.
        keep_image: the image file can be copied byte for byte.
        keep_mask: the mask file can be copied byte for byte.
    """

    facts: SampleFacts
    part: int | None = None
    orientation: int = 1
    turn_mask: bool = False
    keep_image: bool = True
    keep_mask: bool = True


class Memory(Protocol):
    """What was measured of the same bytes before."""

    def recall(self, source: SourceImage, facts: SampleFacts) -> list[Measured] | None:
        """The samples of an image by its digests, ``None`` where they are not known."""
        ...

    def keep(self, source: SourceImage, facts: SampleFacts, measured: Sequence[Measured]) -> None:
        """Remember them."""
        ...


@dataclass(frozen=True)
class Checked(Measured):
    """One sample of a source and what was found in its files.

    Attributes:
        source: the image and its annotation.
        findings: what is wrong with this sample on its own, the worst first.
        put_aside: why it is not used although nothing is wrong with it alone: it leaks; empty for no such reason.
    """

    source: SourceImage = field(default=SourceImage(None, None))
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    put_aside: str = ""

    @property
    def key(self) -> str:
        """The image's (or mask's) path relative to the raw folder; sorts and names the sample."""
        return self.facts.image_file or self.facts.mask_file

    @property
    def split(self) -> str | None:
        """The source's split, later the assigned one."""
        return self.facts.split

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image in pixels, zeros when unknown."""
        return self.facts.image_size or (0, 0)

    @property
    def reason(self) -> str:
        """Why the sample cannot be used; empty when it can."""
        worst = next((found for found in self.findings if found.severity == "error"), None)
        if worst is None:
            return self.put_aside
        is_own = not worst.files or worst.files[0] == self.key or self.key in worst.files
        return worst.message if is_own else f"{worst.files[0]}: {worst.message}"

    def in_split(self, split: str) -> Checked:
        """The same sample, assigned."""
        return self if split == self.split else replace(self, facts=replace(self.facts, split=split))


def check_source(
    source: SourceImage,
    raw: Path,
    options: SourceParams,
    threshold: int,
    checks: CheckParams | None = None,
    memory: Memory | None = None,
) -> list[Checked]:
    """Read the files of one image whole; never raises for what they hold.

    Args:
        source: the image and its annotation.
        raw: the folder that names of files are relative to.
        options: what a sample is.
        threshold: grey values of a mask file from here on are foreground.
        checks: what counts as wrong.
        memory: what was measured of the same bytes before; is told what is measured now.

    Returns:
        One sample, or one for each object where ``options.instances`` says so. Nothing where the options leave out all
        of it: a negative, or an image whose objects are of other classes or too small.
    """
    if source.is_negative and options.negatives != "keep":
        return []
    checks = checks or CheckParams()
    facts = SampleFacts(
        _name(source.image, raw),
        _name(source.annotation.files[0] if source.annotation else None, raw),
        source.split,
        is_negative=source.is_negative,
    )
    has_both = source.image is not None and (source.annotation is not None or source.is_negative)
    measured = _read(source, facts, raw, options, threshold, checks, memory) if has_both else [Measured(facts)]
    return [
        Checked(
            one.facts,
            one.part,
            one.orientation,
            one.turn_mask,
            one.keep_image,
            one.keep_mask,
            source,
            tuple(check_sample(one.facts, checks)),
        )
        for one in measured
    ]


def masks_of(samples: Sequence[Checked], options: SourceParams, threshold: int) -> list[NDArray[np.bool_]]:
    """The (H, W) bool masks of samples of one image, upright, read again from its source.

    Raises:
        ImageError: a file changed since it was checked, and cannot be read.
        DataError: an annotation changed so.
    """
    checked = samples[0]
    assert checked.source.image is not None
    info = image_info(checked.source.image)
    instances = _Drawn.of(checked.source.annotation, info, threshold).instances
    union = [instances[at] for at in _chosen(instances, options)]
    drawn = [
        union_of(union if sample.part is None else [instances[sample.part]], (info.width, info.height))
        for sample in samples
    ]
    return [turn_upright(mask, checked.orientation) if checked.turn_mask else mask for mask in drawn]


@dataclass(frozen=True)
class _Drawn:
    """The annotation of an image, read.

    Attributes:
        instances: all objects.
        grey: (H, W) uint8 values of the file, of a single mask file alone.
        is_clean: the file already is what masks are written as.
    """

    instances: list[Instance]
    grey: NDArray[np.uint8] | None = None
    is_clean: bool = False

    @classmethod
    def of(cls, annotation: Annotation | None, info: ImageInfo, threshold: int, data: bytes | None = None) -> _Drawn:
        if annotation is None:
            return cls([])
        if isinstance(annotation, MaskFiles) and len(annotation.paths) == 1:
            file = read_mask(annotation.paths[0], threshold, data)
            label = annotation.labels[0] if annotation.labels else ""
            return cls([Instance(file.mask, label)], file.grey, file.is_clean)
        # Where an annotation has no size of its own it belongs to the image as people see it.
        return cls(annotation.instances((info.width, info.height), threshold))


def _read(
    source: SourceImage,
    facts: SampleFacts,
    raw: Path,
    options: SourceParams,
    threshold: int,
    checks: CheckParams,
    memory: Memory | None,
) -> list[Measured]:
    """The samples of an image that has an annotation or is a negative: one with a problem where a file is bad."""
    assert source.image is not None
    annotation = source.annotation
    try:
        data = file_bytes(source.image)
    except ImageError as exc:
        return [Measured(replace(facts, image_problem=_said(exc, raw, facts.image_file)))]
    try:
        is_file = isinstance(annotation, MaskFiles) and len(annotation.paths) == 1
        mask_data = file_bytes(annotation.files[0]) if annotation and is_file else None
        if mask_data is not None:
            digest = hashlib.sha256(mask_data).hexdigest()
        else:
            digest = annotation.digest() if annotation else ""
    except (ImageError, OSError) as exc:
        return [Measured(replace(facts, mask_problem=_said(exc, raw, facts.mask_file)))]
    facts = replace(facts, image_sha256=hashlib.sha256(data).hexdigest(), mask_digest=digest)
    known = memory.recall(source, facts) if memory else None
    if known is not None:
        return known
    try:
        picture = read_image(source.image, data, min_side=_FACTS_PX)
    except ImageError as exc:
        return [Measured(replace(facts, image_problem=_said(exc, raw, facts.image_file)))]
    try:
        drawn = _Drawn.of(annotation, picture.info, threshold, mask_data)
    except (ImageError, DataError) as exc:
        facts = replace(facts, image_size=(picture.info.width, picture.info.height))
        return [Measured(replace(facts, mask_problem=_said(exc, raw, facts.mask_file)))]
    measured = _measure(source, facts, picture, drawn, options, checks)
    if memory:
        memory.keep(source, facts, measured)
    return measured


def _measure(
    source: SourceImage, facts: SampleFacts, picture: Picture, drawn: _Drawn, options: SourceParams, checks: CheckParams
) -> list[Measured]:
    """All samples of an image whose files could be read."""
    info, instances = picture.info, drawn.instances
    upright = (info.width, info.height)
    shape = instances[0].mask.shape if instances else (info.height, info.width)
    size = (shape[1], shape[0])
    turn = info.orientation != 1 and size != upright and size == info.stored_size
    picture_facts = image_facts(picture.pixels)
    keep_mask = drawn.is_clean and not turn

    def sample(mask: NDArray[np.bool_], label: str = "", part: int | None = None) -> Measured:
        measured = mask_facts(
            mask,
            drawn.grey,
            is_clean=drawn.is_clean,
            model_px=checks.model_px,
            min_part_frac=checks.min_part_frac,
        )
        # Points of an image that was turned say nothing: tools differ in whether they turn it.
        has_points = source.points is not None and info.orientation == 1 and bool(measured.foreground_frac)
        points = point_facts(mask, source.points) if has_points else None
        # Written out: ``replace`` takes as long as decoding a small mask.
        own = SampleFacts(
            image_file=facts.image_file,
            mask_file=facts.mask_file,
            split=facts.split,
            label=label,
            is_negative=facts.is_negative,
            image_size=upright,
            mask_size=upright if turn else size,
            image_sha256=facts.image_sha256,
            mask_digest=facts.mask_digest,
            image=picture_facts,
            mask=measured,
            points=points,
        )
        return Measured(own, part, info.orientation, turn, info.is_plain, keep_mask)

    if not any(instance.mask.any() for instance in instances):
        # An empty mask is no choice of the options: it is reported.
        return [sample(union_of(instances, size))]
    chosen = _chosen(instances, options)
    if options.instances == "each":
        objects = [at for at in chosen if not instances[at].is_crowd]
        return [sample(instances[at].mask, instances[at].label, at) for at in objects]
    if not chosen:
        return []
    labels = {instances[at].label for at in chosen}
    return [sample(union_of([instances[at] for at in chosen], size), next(iter(labels)) if len(labels) == 1 else "")]


def _chosen(instances: Sequence[Instance], options: SourceParams) -> list[int]:
    """Numbers of the objects that the options do not leave out."""
    min_area = options.min_area_px or 1

    def is_enough(mask: NDArray[np.bool_]) -> bool:
        return bool(mask.any()) if min_area == 1 else int(np.count_nonzero(mask)) >= min_area

    return [
        at
        for at, instance in enumerate(instances)
        if (options.classes is None or instance.label in options.classes) and is_enough(instance.mask)
    ]


def _name(path: Path | None, raw: Path) -> str:
    """A path relative to the raw folder; empty for none. Compares texts: ``relative_to`` costs as much as a hash."""
    if path is None:
        return ""
    text, folder = path.as_posix(), f"{raw.as_posix()}/"
    return text[len(folder) :] if text.startswith(folder) else path.relative_to(raw).as_posix()


def _said(error: Exception, raw: Path, name: str) -> str:
    """A message without what its finding says already: the file."""
    message = error.message if isinstance(error, SamclError) else str(error)
    return message.replace(f"{raw}/", "").removeprefix(f"{name}: ")
