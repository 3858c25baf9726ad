"""What a source's files hold: every sample of it, read whole, with what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samcl_core.config import SourceParams
from samcl_core.domains.annotations import Annotation, Instance, MaskFiles, union_of
from samcl_core.domains.checks import CheckParams, SampleFacts, check_sample
from samcl_core.domains.facts import image_facts, mask_facts, point_facts
from samcl_core.domains.findings import Finding
from samcl_core.domains.formats import SourceImage
from samcl_core.domains.images import ImageInfo, image_info, read_image, read_mask, turn_upright
from samcl_core.errors import DataError, ImageError

__all__ = ["Checked", "check_source", "masks_of"]


@dataclass(frozen=True)
class Checked:
    """One sample of a source and what was found in its files.

    Attributes:
        source: the image and its annotation.
        facts: what was measured; its files name the sample.
        part: number of the object among those of the image, from 0; ``None`` where all objects are one sample.
        orientation: EXIF orientation of the image.
        turn_mask: the annotation was drawn on the stored pixels, so it needs the image's turn.
        keep_image: the image file can be copied byte for byte.
        keep_mask: the mask file can be copied byte for byte.
        findings: what is wrong with this sample on its own, the worst first.
        put_aside: why it is not used although nothing is wrong with it alone: it leaks; empty for no such reason.
    """

    source: SourceImage
    facts: SampleFacts
    part: int | None = None
    orientation: int = 1
    turn_mask: bool = False
    keep_image: bool = True
    keep_mask: bool = True
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
        return replace(self, facts=replace(self.facts, split=split))


def check_source(
    source: SourceImage, raw: Path, options: SourceParams, threshold: int, checks: CheckParams | None = None
) -> list[Checked]:
    """Read the files of one image whole; never raises for what they hold.

    Args:
        source: the image and its annotation.
        raw: the folder that names of files are relative to.
        options: what a sample is.
        threshold: grey values of a mask file from here on are foreground.
        checks: what counts as wrong.

    Returns:
        One sample, or one for each object where ``options.instances`` says so. Nothing where the options leave out all
        of it: a negative, or an image whose objects are of other classes or too small.
    """
    if source.is_negative and options.negatives != "keep":
        return []
    checks = checks or CheckParams()
    names = [file.relative_to(raw).as_posix() for file in (source.annotation.files if source.annotation else ())]
    image_file = source.image.relative_to(raw).as_posix() if source.image else ""
    facts = SampleFacts(image_file, (names or [""])[0], source.split, is_negative=source.is_negative)
    checked = Checked(source, facts)
    if source.image is not None and (source.annotation is not None or source.is_negative):
        samples = _read(checked, source.image, raw, options, threshold, checks)
    else:
        samples = [checked]
    return [replace(sample, findings=tuple(check_sample(sample.facts, checks))) for sample in samples]


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
        digest: changes with the annotation.
        grey: (H, W) uint8 values of the file, of a single mask file alone.
        is_clean: the file already is what masks are written as.
    """

    instances: list[Instance]
    digest: str
    grey: NDArray[np.uint8] | None = None
    is_clean: bool = False

    @classmethod
    def of(cls, annotation: Annotation | None, info: ImageInfo, threshold: int) -> _Drawn:
        if annotation is None:
            return cls([], "")
        if isinstance(annotation, MaskFiles) and len(annotation.paths) == 1:
            file = read_mask(annotation.paths[0], threshold)
            label = annotation.labels[0] if annotation.labels else ""
            return cls([Instance(file.mask, label)], file.sha256, file.grey, file.is_clean)
        # Where an annotation has no size of its own it belongs to the image as people see it.
        return cls(annotation.instances((info.width, info.height), threshold), annotation.digest())


def _read(
    checked: Checked, image: Path, raw: Path, options: SourceParams, threshold: int, checks: CheckParams
) -> list[Checked]:
    """The samples of an image: one with a problem where a file cannot be read."""
    facts = checked.facts
    try:
        picture = read_image(image)
    except ImageError as exc:
        return [replace(checked, facts=replace(facts, image_problem=_said(exc, raw, facts.image_file)))]
    info = picture.info
    facts = replace(
        facts, image_size=(info.width, info.height), image_sha256=picture.sha256, image=image_facts(picture.pixels)
    )
    checked = replace(checked, orientation=info.orientation, keep_image=info.is_plain)
    try:
        drawn = _Drawn.of(checked.source.annotation, info, threshold)
    except (ImageError, DataError) as exc:
        return [replace(checked, facts=replace(facts, mask_problem=_said(exc, raw, facts.mask_file)))]
    shape = drawn.instances[0].mask.shape if drawn.instances else (info.height, info.width)
    size = (shape[1], shape[0])
    turn = info.orientation != 1 and size != (info.width, info.height) and size == info.stored_size
    facts = replace(facts, mask_size=facts.image_size if turn else size, mask_digest=drawn.digest)
    checked = replace(
        checked, facts=facts, turn_mask=turn, keep_mask=drawn.is_clean and not turn and bool(drawn.instances)
    )
    return _samples(checked, drawn, options, checks, size)


def _samples(
    checked: Checked, drawn: _Drawn, options: SourceParams, checks: CheckParams, size: tuple[int, int]
) -> list[Checked]:
    """One sample of all objects, or one of each."""
    instances = drawn.instances
    if not any(instance.mask.any() for instance in instances):
        # An empty mask is no choice of the options: it is reported.
        empty = mask_facts(union_of(instances, size), drawn.grey)
        return [replace(checked, facts=replace(checked.facts, mask=empty))]
    chosen = _chosen(instances, options)
    if not chosen:
        return []
    if options.instances == "each":
        objects = [at for at in chosen if not instances[at].is_crowd]
        return [
            _measured(replace(checked, part=at), instances[at].mask, instances[at].label, drawn, checks)
            for at in objects
        ]
    labels = {instances[at].label for at in chosen}
    mask = union_of([instances[at] for at in chosen], size)
    return [_measured(checked, mask, next(iter(labels)) if len(labels) == 1 else "", drawn, checks)]


def _measured(checked: Checked, mask: NDArray[np.bool_], label: str, drawn: _Drawn, checks: CheckParams) -> Checked:
    measured = mask_facts(mask, drawn.grey, model_px=checks.model_px, min_part_frac=checks.min_part_frac)
    points = checked.source.points
    # Points of an image that was turned say nothing: tools differ in whether they turn it.
    found = None if points is None or checked.orientation != 1 else point_facts(mask, points)
    return replace(checked, facts=replace(checked.facts, label=label, mask=measured, points=found))


def _chosen(instances: Sequence[Instance], options: SourceParams) -> list[int]:
    """Numbers of the objects that the options do not leave out."""
    min_area = options.min_area_px or 1
    return [
        at
        for at, instance in enumerate(instances)
        if (options.classes is None or instance.label in options.classes)
        and int(np.count_nonzero(instance.mask)) >= min_area
    ]


def _said(error: ImageError | DataError, raw: Path, name: str) -> str:
    """A message without what its finding says already: the file."""
    return error.message.replace(f"{raw}/", "").removeprefix(f"{name}: ")
