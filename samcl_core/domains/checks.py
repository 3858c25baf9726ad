"""Judging what a data set holds: facts and thresholds in, findings out. Nothing here reads a file.

====================== ======== =======================================================================================
check                  severity found where
====================== ======== =======================================================================================
image.missing          error    a mask has no image
mask.missing           error    an image has no mask, and is not said to be a negative
image.unreadable       error    the image cannot be decoded whole: damaged, truncated, not an image
mask.unreadable        error    the mask cannot be decoded or drawn
image.too_large        error    the header claims more pixels than are ever decoded (decompression bomb)
mask.too_large         error    the same of a mask
mask.swapped_axes      error    the mask has the image's sides the other way round
mask.size              error    the mask has another size than the image
mask.empty             error    no pixel is foreground, and the image is not said to be a negative
mask.full              error    there is hardly any background (``max_foreground_frac``)
leak.exact             error    the same image bytes in two splits
leak.near              warning  near-duplicates in two splits
mask.not_binary        warning  in-between grey values away from the mask's edges (``max_grey_frac``)
mask.thin              warning  a part is thinner than the model resolves (``min_thickness_px``)
mask.shared            warning  one mask file belongs to several images
mask.repeated          warning  different images have the same mask
image.flat             warning  the image shows nothing (``min_contrast``)
image.odd_size         warning  a tiny side or an extreme aspect (``min_side_px``, ``max_aspect``)
image.duplicate        warning  the same image bytes twice in one split
points.unreadable      warning  the source's points for a mask are not what ``points.json`` holds
points.outside         warning  a foreground point outside its mask, or a background point in it
classes.imbalance      warning  the largest class has far more samples than the smallest (``max_class_ratio``)
foreground.large       warning  most masks cover most of the image: inverted (``max_median_foreground_frac``)
foreground.small       warning  most masks cover next to nothing (``min_median_foreground_frac``)
image.near_duplicate   info     near-duplicates in one split
====================== ======== =======================================================================================

A sample with an error cannot be used. A leak is no sample's own fault: ``leaking_samples`` says which to put aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from samcl_core.domains.facts import ImageFacts, MaskFacts, PointFacts
from samcl_core.domains.findings import Finding, Severity, sort_findings
from samcl_core.quality import CheckParams

__all__ = ["SEVERITY_OF", "CheckParams", "SampleFacts", "check_sample", "finding"]

SEVERITY_OF: dict[str, Severity] = {
    "image.missing": "error",
    "mask.missing": "error",
    "image.unreadable": "error",
    "mask.unreadable": "error",
    "image.too_large": "error",
    "mask.too_large": "error",
    "mask.swapped_axes": "error",
    "mask.size": "error",
    "mask.empty": "error",
    "mask.full": "error",
    "leak.exact": "error",
    "leak.near": "warning",
    "mask.not_binary": "warning",
    "mask.thin": "warning",
    "mask.shared": "warning",
    "mask.repeated": "warning",
    "image.flat": "warning",
    "image.odd_size": "warning",
    "image.duplicate": "warning",
    "points.unreadable": "warning",
    "points.outside": "warning",
    "classes.imbalance": "warning",
    "foreground.large": "warning",
    "foreground.small": "warning",
    "image.near_duplicate": "info",
}
"""How bad each check's findings are."""


@dataclass(frozen=True)
class SampleFacts:
    """What is known of one sample: an image and what is annotated on it (or one object of it).

    Attributes:
        image_file: relative to the raw folder; empty for a mask without an image.
        mask_file: the mask or annotation file, relative to the raw folder; empty for an image without any.
        split: ``train``, ``val`` or ``test``; ``None`` while it has none.
        label: the class of the object; empty where the source has no classes.
        is_negative: the source says that there is no object in the image.
        image_problem: why the image cannot be read; empty when it can.
        mask_problem: why the mask cannot be read; empty when it can.
        image_size: (width, height) of the upright image; ``None`` when unknown.
        mask_size: (width, height) of the mask; ``None`` when unknown.
        image_sha256: of the image file; empty when unknown.
        mask_digest: changes when the annotation of the image does (``Annotation.digest``); empty when unknown.
        image: what is measured of the image; ``None`` when it cannot be read.
        mask: what is measured of the mask; ``None`` when it cannot be read.
        points: what is measured of the source's own points; ``None`` without any.
    """

    image_file: str
    mask_file: str = ""
    split: str | None = None
    label: str = ""
    is_negative: bool = False
    image_problem: str = ""
    mask_problem: str = ""
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    image_sha256: str = ""
    mask_digest: str = ""
    image: ImageFacts | None = field(default=None, repr=False)
    mask: MaskFacts | None = None
    points: PointFacts | None = None


def finding(check: str, files: Sequence[str], message: str) -> Finding:
    """A finding with the severity of its check; empty file names are left out."""
    return Finding(check, SEVERITY_OF[check], tuple(name for name in files if name), message)


def check_sample(facts: SampleFacts, params: CheckParams) -> list[Finding]:
    """What is wrong with one sample on its own, sorted: the worst first. One cause gives one finding."""
    broken = _check_presence(facts) or _check_files(facts) or _check_sizes(facts)
    if broken:
        return sort_findings(broken)
    return sort_findings(_check_image(facts, params) + _check_mask(facts, params) + _check_points(facts, params))


def _check_presence(facts: SampleFacts) -> list[Finding]:
    if not facts.image_file:
        return [finding("image.missing", [facts.mask_file], "the mask has no image")]
    if not facts.mask_file and not facts.is_negative:
        return [finding("mask.missing", [facts.image_file], "the image has no mask")]
    return []


def _check_files(facts: SampleFacts) -> list[Finding]:
    found = []
    for what, file, problem in (
        ("image", facts.image_file, facts.image_problem),
        ("mask", facts.mask_file, facts.mask_problem),
    ):
        if problem:
            # The words of images.load_image: the size in the header is refused before anything is decoded.
            check = "too_large" if "too large (" in problem else "unreadable"
            # A message names its file as it was opened; where the data set lies on this machine says nothing.
            found.append(finding(f"{what}.{check}", [file or facts.image_file], problem.split(f"{file}: ", 1)[-1]))
    return found


def _check_sizes(facts: SampleFacts) -> list[Finding]:
    image, mask = facts.image_size, facts.mask_size
    if image is None or mask is None or image == mask:
        return []
    files, message = [facts.mask_file, facts.image_file], f"the mask is {_size(mask)} pixels, the image {_size(image)}"
    if mask == image[::-1]:
        return [finding("mask.swapped_axes", files, f"{message}: width and height look swapped")]
    return [finding("mask.size", files, message)]


def _check_image(facts: SampleFacts, params: CheckParams) -> list[Finding]:
    found = []
    if facts.image is not None and facts.image.contrast < params.min_contrast:
        message = (
            f"the image shows nothing: contrast {facts.image.contrast:g}, expected at least {params.min_contrast:g}"
        )
        found.append(finding("image.flat", [facts.image_file], message))
    if facts.image_size is not None:
        short, long = sorted(facts.image_size)
        size = _size(facts.image_size)
        if short < params.min_side_px:
            message = f"{size} pixels, expected at least {params.min_side_px} a side"
            found.append(finding("image.odd_size", [facts.image_file], message))
        elif long > params.max_aspect * short:
            message = f"{size} pixels, sides of 1:{long / short:.0f}, expected at most 1:{params.max_aspect:g}"
            found.append(finding("image.odd_size", [facts.image_file], message))
    return found


def _check_mask(facts: SampleFacts, params: CheckParams) -> list[Finding]:
    mask, file = facts.mask, [facts.mask_file or facts.image_file]
    if mask is None:
        return []
    if mask.foreground_frac == 0:
        return [] if facts.is_negative else [finding("mask.empty", file, _empty_message(mask))]
    if mask.foreground_frac > params.max_foreground_frac:
        return [finding("mask.full", file, f"the mask covers {mask.foreground_frac:.1%} of the image: no background")]
    found = []
    if mask.grey_frac > params.max_grey_frac:
        message = (
            f"{mask.grey_frac:.1%} of the object is neither black nor white, expected at most"
            f" {params.max_grey_frac:.1%}: a soft mask, or values that stand for classes"
        )
        found.append(finding("mask.not_binary", file, message))
    if mask.thickness_px < params.min_thickness_px:
        message = (
            f"{mask.thickness_px:.1f} pixels wide where the model sees it at {params.model_px},"
            f" expected at least {params.min_thickness_px:g}"
        )
        found.append(finding("mask.thin", file, message))
    return found


def _empty_message(mask: MaskFacts) -> str:
    if mask.max_grey < 1:
        return "the mask is empty"
    return f"the mask is empty: its largest value is {mask.max_grey}; values that stand for classes need `codes`"


def _check_points(facts: SampleFacts, params: CheckParams) -> list[Finding]:
    points = facts.points
    if points is None:
        return []
    if points.problem:
        return [finding("points.unreadable", [facts.mask_file], points.problem)]
    missing = [miss for miss in points.misses_px if miss > params.point_tolerance_px]
    if not missing:
        return []
    message = (
        f"{len(missing)} of {len(points.misses_px)} points miss their mask, by up to {max(missing):g} pixels of the"
        f" 1024 frame; expected at most {params.point_tolerance_px:g}"
    )
    return [finding("points.outside", [facts.mask_file], message)]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
