"""Judging a data set as a whole: copies, leaks between splits, shared masks, classes and sizes of objects."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from samcl_core.domains.checks import SampleFacts, check_sample, finding
from samcl_core.domains.findings import Finding, sort_findings
from samcl_core.domains.layout import SPLITS
from samcl_core.domains.similarity import near_duplicates
from samcl_core.quality import CheckParams

__all__ = ["check_all", "check_domain", "leaking_samples", "similar_images"]

_MAX_NAMED = 4


def check_all(samples: Sequence[SampleFacts], params: CheckParams) -> list[Finding]:
    """Findings of every sample, and of the domain that its usable samples make, sorted."""
    found: list[Finding] = []
    usable = []
    for sample in samples:
        own = check_sample(sample, params)
        found += own
        if all(one.severity != "error" for one in own):
            usable.append(sample)
    return sort_findings([*found, *check_domain(usable, params)])


def check_domain(
    samples: Sequence[SampleFacts], params: CheckParams, twins: Sequence[tuple[str, ...]] | None = None
) -> list[Finding]:
    """What is wrong with samples taken together, sorted.

    Args:
        samples: those that can be used, with their splits. Samples of one image file (its objects) count as one image.
        params: the thresholds.
        twins: ``similar_images`` of these samples, or of more; ``None`` computes them.
    """
    images = {sample.image_file: sample for sample in samples if sample.image_file}
    found = similar_images(samples, params) if twins is None else twins
    twins = [cluster for names in found if len(cluster := tuple(name for name in names if name in images)) > 1]
    return sort_findings(
        _check_copies(images)
        + _check_twins(images, twins)
        + _check_masks(images, twins)
        + _check_classes(samples, params)
        + _check_foreground(samples, params)
    )


def similar_images(samples: Sequence[SampleFacts], params: CheckParams) -> list[tuple[str, ...]]:
    """Sets of image files that show the same, copies included, each sorted. Splits should not tear them apart."""
    files: dict[str, set[str]] = {}
    first: dict[str, SampleFacts] = {}
    for sample in samples:
        if sample.image_file and sample.image_sha256:
            files.setdefault(sample.image_sha256, set()).add(sample.image_file)
            first.setdefault(sample.image_sha256, sample)
    # A flat picture looks like every other: it has nothing to compare.
    digests = [
        digest
        for digest, sample in first.items()
        if params.near_duplicates and sample.image is not None and sample.image.contrast >= params.min_contrast
    ]
    facts = [image for digest in digests if (image := first[digest].image) is not None]
    groups = near_duplicates(
        [image.hash for image in facts],
        b"".join(image.thumbnail for image in facts),
        max_distance=params.max_hash_distance,
        min_correlation=params.min_correlation,
    )
    clusters = [[digests[index] for index in group] for group in groups]
    joined = {digest for cluster in clusters for digest in cluster}
    clusters += [[digest] for digest, names in files.items() if len(names) > 1 and digest not in joined]
    return sorted(tuple(sorted(name for digest in cluster for name in files[digest])) for cluster in clusters)


def leaking_samples(samples: Sequence[SampleFacts]) -> dict[int, str]:
    """Which samples to put aside so that no image stands in two splits: number of the sample to the reason.

    The copy in ``test`` stays, then that in ``val``.
    """
    best: dict[str, tuple[int, str]] = {}
    for sample in sorted(samples, key=lambda sample: sample.image_file):
        if sample.image_sha256 and sample.split in SPLITS:
            place = (SPLITS.index(sample.split), sample.image_file)
            best[sample.image_sha256] = max(best.get(sample.image_sha256, place), place, key=lambda found: found[0])
    reasons = {}
    for number, sample in enumerate(samples):
        rank, file = best.get(sample.image_sha256, (-1, ""))
        if sample.split in SPLITS and SPLITS.index(sample.split) < rank:
            reasons[number] = f"the same picture is in {SPLITS[rank]}: {file}"
    return reasons


def _check_copies(images: dict[str, SampleFacts]) -> list[Finding]:
    """The same bytes under several names, in one split or in two."""
    found = []
    for members in _groups(images.values(), lambda sample: sample.image_sha256):
        if len(_splits(members)) > 1:
            found.append(finding("leak.exact", _names(members), f"the same image in {_where(members)}"))
            continue
        has_one_mask = len({member.mask_digest for member in members}) == 1
        masks = "with the same mask" if has_one_mask else "with different masks"
        found.append(finding("image.duplicate", _names(members), f"the same image {len(members)} times, {masks}"))
    return found


def _check_twins(images: dict[str, SampleFacts], twins: Sequence[tuple[str, ...]]) -> list[Finding]:
    """Different bytes that show the same."""
    found = []
    for cluster in twins:
        members = [images[name] for name in cluster]
        if len({member.image_sha256 for member in members}) == 1:
            continue
        check = "leak.near" if len(_splits(members)) > 1 else "image.near_duplicate"
        found.append(finding(check, _names(members), f"near-duplicates in {_where(members)}"))
    return found


def _check_masks(images: dict[str, SampleFacts], twins: Sequence[tuple[str, ...]]) -> list[Finding]:
    """One mask for different images. That copies of an image have one is no surprise."""
    cluster_of = {name: number for number, cluster in enumerate(twins) for name in cluster}
    found = []
    drawn = [sample for sample in images.values() if sample.mask is not None and sample.mask.foreground_frac > 0]
    for members in _groups(drawn, lambda sample: sample.mask_digest):
        if len({cluster_of.get(member.image_file, member.image_file) for member in members}) == 1:
            continue
        masks = list(dict.fromkeys(member.mask_file for member in _ordered(members)))
        if len(masks) == 1:
            message = f"one mask file for {len(members)} images"
            found.append(finding("mask.shared", [*masks, *_names(members)], message))
        else:
            message = f"the same mask for {len(members)} different images"
            found.append(finding("mask.repeated", masks, message))
    return found


def _check_classes(samples: Sequence[SampleFacts], params: CheckParams) -> list[Finding]:
    counts = Counter(sample.label for sample in samples if sample.label).most_common()
    if len(counts) < 2 or sum(count for _, count in counts) < params.min_samples:
        return []
    (most, num_most), (least, num_least) = counts[0], min(counts, key=lambda entry: (entry[1], entry[0]))
    if num_most <= params.max_class_ratio * num_least:
        return []
    message = (
        f"{num_most} samples of {most!r} and {num_least} of {least!r}: {num_most / num_least:.0f} times as many,"
        f" expected at most {params.max_class_ratio:g}"
    )
    return [finding("classes.imbalance", [], message)]


def _check_foreground(samples: Sequence[SampleFacts], params: CheckParams) -> list[Finding]:
    shares = [sample.mask.foreground_frac for sample in samples if sample.mask is not None and not sample.is_negative]
    if len(shares) < params.min_samples:
        return []
    median = statistics.median(shares)
    if median > params.max_median_foreground_frac:
        message = f"half of the masks cover more than {median:.0%} of their image: they may be inverted"
        return [finding("foreground.large", [], message)]
    if median < params.min_median_foreground_frac:
        message = f"half of the masks cover less than {median:.3%} of their image: hardly any object is to be seen"
        return [finding("foreground.small", [], message)]
    return []


def _groups(samples: Iterable[SampleFacts], key: Callable[[SampleFacts], str]) -> list[list[SampleFacts]]:
    """Samples with the same key, two or more; those without a key are alone."""
    groups: dict[str, list[SampleFacts]] = {}
    for sample in samples:
        if key(sample):
            groups.setdefault(key(sample), []).append(sample)
    return [members for members in groups.values() if len(members) > 1]


def _splits(members: Sequence[SampleFacts]) -> list[str]:
    return sorted({member.split for member in members if member.split}, key=_rank)


def _ordered(members: Sequence[SampleFacts]) -> list[SampleFacts]:
    """Those for training first."""
    return sorted(members, key=lambda member: (_rank(member.split or ""), member.image_file))


def _names(members: Sequence[SampleFacts]) -> list[str]:
    return [member.image_file for member in _ordered(members)]


def _where(members: Sequence[SampleFacts]) -> str:
    """``train (a.png) and test (b.png)``."""
    parts = []
    for split in _splits(members) or [""]:
        names = sorted(member.image_file for member in members if (member.split or "") == split)
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        parts.append(f"{split or 'the source'} ({', '.join(names[:_MAX_NAMED])}{more})")
    return " and ".join(parts)


def _rank(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else -1
