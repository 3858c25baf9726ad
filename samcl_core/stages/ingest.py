"""A data set as it arrived becomes a domain: detected, checked, split, written upright and clean, with a manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.config import Params, SourceParams
from samcl_core.domains.annotations import MaskFiles, codes_of
from samcl_core.domains.datareport import REPORT_HTML, summarize, view_loader, worst_pictures, write_report
from samcl_core.domains.domain_checks import check_domain, leaking_samples, similar_images
from samcl_core.domains.drops import card_of
from samcl_core.domains.findings import Finding, sort_findings
from samcl_core.domains.formats import Format, ReadOptions, SourceImage, detect_format, get_format, unwrap
from samcl_core.domains.images import load_image
from samcl_core.domains.layout import POINTS_FILE, SPLITS
from samcl_core.domains.manifest import Record, write_manifest
from samcl_core.domains.memory import FileMemory
from samcl_core.domains.points import write_object
from samcl_core.domains.splits import SplitItem, assign_splits, cap_samples, groups_of, listed_names
from samcl_core.domains.validation import Checked, check_source, masks_of
from samcl_core.domains.workers import map_files
from samcl_core.domains.writing import Planned, plan_names, quarantine, write_image
from samcl_core.errors import DataError, ImageError, LayoutError
from samcl_core.files import staged_folder
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import Places

__all__ = ["REPORT", "Survey", "refuse_unusable", "run", "survey"]

REPORT = "report"
"""Folder of a domain that holds ``report.json`` and ``report.html``."""

_MAX_SHOWN = 5


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        format: name of its layout.
        options: what its ``domain.yaml`` and ``params.yaml`` say about it.
        good: samples that can be used, each with its split.
        bad: samples that cannot, each with the reason.
        findings: everything that the checks found, the worst first.
        num_left_out: images and samples that the options leave out.
    """

    format: str
    options: SourceParams
    good: tuple[Checked, ...]
    bad: tuple[Checked, ...]
    findings: tuple[Finding, ...] = ()
    num_left_out: int = 0

    @property
    def reasons(self) -> dict[str, str]:
        """Path to what is wrong, of the bad samples by name."""
        return {sample.key: sample.reason for sample in sorted(self.bad, key=lambda sample: sample.key)}


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write images, annotations and ``manifest.parquet`` of ``domain`` from ``data/raw/<domain>``.

    Samples that cannot be used are quarantined: they are rows of the manifest, with the reason, and nothing else.

    Returns:
        Counts: ``num_train``, ``num_val``, ``num_test``, ``num_quarantined``, ``reasons`` of the quarantine,
        ``num_left_out`` by options, ``num_warnings`` of the checks, the ``format`` found.

    Raises:
        LayoutError: nothing arrived, or not in a known layout.
        DataError: too large a share of the samples is bad, or a split has no good one. Nothing was written.
    """
    places = Places(root)
    raw = places.raw(domain)
    declared = params.domains[domain]
    threshold = params.ingest.mask_threshold or 128
    found = survey(raw, params, declared.format, declared, progress, places.measured(domain))
    planned = plan_names(found.good)
    target = places.domain(domain)
    try:
        refuse_unusable(found, domain, declared.role, params.ingest.max_bad_frac)
    except DataError as exc:
        # Beside the domain, which stays as it was.
        rows = [quarantine(sample) for sample in found.bad]
        page = _report(places.failed_report(domain), domain, found, rows, threshold)
        raise DataError(f"{exc.message}\n  the report with pictures: {page}", hint=exc.hint) from exc
    records = _write(target, planned, found, threshold, progress)
    _report(target / REPORT, domain, found, [*records, *map(quarantine, found.bad)], threshold)
    return {
        "domain": domain,
        "format": found.format,
        **{f"num_{split}": sum(record.split == split for record in records) for split in SPLITS},
        "num_quarantined": len(found.bad),
        "reasons": found.reasons,
        "num_left_out": found.num_left_out,
        "num_warnings": sum(one.severity == "warning" for one in found.findings),
    }


def survey(
    raw: Path,
    params: Params,
    format: str = "auto",
    declared: SourceParams | None = None,
    progress: Progress = silent,
    memory: Path | None = None,
) -> Survey:
    """Look at every file of a source; nothing is written.

    Args:
        raw: the folder of the source; a ``domain.yaml`` in it may say what its files do not.
        params: the workspace's settings.
        format: name of the layout, or ``auto``.
        declared: options that come before those of ``domain.yaml``.
        progress: called after each image.
        memory: a file that holds what was measured of the same bytes before, and is brought up to date.

    Raises:
        LayoutError: nothing arrived, or not in a known layout.
        ConfigError: ``domain.yaml`` is wrong.
        DataError: an annotation file cannot be understood, or an option names what is not there.
    """
    threshold = params.ingest.mask_threshold or 128
    options = (declared or SourceParams()).over(card_of(raw) if raw.is_dir() else SourceParams())
    source_format, images = _scan(raw, format, options)
    known = None if memory is None else FileMemory(memory, options, threshold, params.ingest.checks)

    def look(image: SourceImage) -> list[Checked]:
        return check_source(image, raw, options, threshold, params.ingest.checks, known)

    looked = map_files(look, images, progress, "checking images")
    if known is not None:
        known.save()
    checked = [sample for samples in looked for sample in samples]
    _refuse_unknown_classes(checked, images, options)
    bad = [sample for sample in checked if sample.reason]
    whole = [sample for sample in checked if not sample.reason]
    progress("comparing images", 0, 0)
    twins = similar_images([sample.facts for sample in whole], params.ingest.checks)
    splits = _splits(whole, bad, twins, options, params, unwrap(raw))
    kept = _capped([sample.in_split(splits[sample.key]) for sample in whole], options.max_samples, params.seed)
    leaks = leaking_samples([sample.facts for sample in kept])
    good = [sample for at, sample in enumerate(kept) if at not in leaks]
    bad += [replace(kept[at], put_aside=reason) for at, reason in leaks.items()]
    return Survey(
        format=source_format.name,
        options=options,
        good=tuple(good),
        bad=tuple(bad),
        findings=tuple(
            sort_findings(
                [found for sample in checked for found in sample.findings]
                + check_domain([sample.facts for sample in kept], params.ingest.checks, twins)
            )
        ),
        num_left_out=sum(not samples for samples in looked) + len(whole) - len(kept),
    )


def _splits(
    good: Sequence[Checked],
    bad: Sequence[Checked],
    twins: Sequence[tuple[str, ...]],
    options: SourceParams,
    params: Params,
    source: Path,
) -> dict[str, str]:
    """The split of each good image, by key. Near-duplicates are torn apart by the source alone, never by the seed."""
    groups = groups_of([sample.key for sample in good], options, source)
    items = {
        sample.key: SplitItem(sample.key, sample.split, groups.get(sample.key, sample.source.group)) for sample in good
    }
    wanted: dict[str, float | list[str]] = {}
    for split, default in (("test", params.ingest.test_frac), ("val", params.ingest.val_frac)):
        said = getattr(options, split)
        wanted[split] = listed_names(said, source) if isinstance(said, tuple) else said or default
    return assign_splits(
        list(items.values()),
        test=wanted["test"],
        val=wanted["val"],
        seed=params.seed,
        twins=twins,
        others=[sample.key for sample in bad],
    )


def _capped(good: Sequence[Checked], limit: int | None, seed: int) -> list[Checked]:
    kept: list[Checked] = []
    for split in SPLITS:
        members = {f"{sample.key}:{sample.part}": sample for sample in good if sample.split == split}
        kept += [members[name] for name in cap_samples(sorted(members), limit, seed)]
    return kept


def _refuse_unknown_classes(checked: Sequence[Checked], images: Sequence[SourceImage], options: SourceParams) -> None:
    if options.classes is None or checked:
        return
    raise DataError(
        f"none of {len(images)} images has an object of the classes {list(options.classes)}",
        hint="correct `classes`; `samcl ingest PATH --dry-run` without it lists what there is",
    )


def refuse_unusable(found: Survey, domain: str, role: str, max_bad_frac: float) -> None:
    """Nothing, when a domain can be made of it.

    Raises:
        DataError: too large a share of the samples is bad, or a split has no good sample.
    """
    _refuse_bad_share(domain, found.bad, len(found.good) + len(found.bad), max_bad_frac)
    _refuse_empty_split(domain, found.good, is_test_only_allowed=role == "unseen")


def _scan(raw: Path, name: str, options: SourceParams) -> tuple[Format, list[SourceImage]]:
    """The format of a source and all its images, sorted.

    Raises:
        LayoutError: there is nothing, or nothing that fits.
        DataError: ``codes`` for a format without coded masks.
    """
    if not raw.is_dir():
        raise LayoutError(f"{raw} is missing", hint=f"dvc checkout data/raw/{raw.name}, or samcl ingest PATH")
    source = unwrap(raw)
    source_format = detect_format(source) if name == "auto" else get_format(name)
    if options.codes and not getattr(source_format, "reads_codes", False):
        raise DataError(
            f"`codes` is given, but the format {source_format.name!r} has no mask files whose values are classes",
            hint="remove `codes` from domain.yaml or params.yaml, or choose another format with --format",
        )
    images = source_format.scan(source, ReadOptions(codes_of(options.codes)))
    if not images:
        raise LayoutError(f"{raw}: the folders of the format {source_format.name!r} hold no image")
    return source_format, sorted(images, key=lambda image: image.path)


def _refuse_bad_share(domain: str, bad: Sequence[Checked], total: int, max_bad_frac: float) -> None:
    if len(bad) <= max_bad_frac * total:
        return
    shown = "".join(f"\n  - {pair.key}: {pair.reason}" for pair in bad[:_MAX_SHOWN])
    more = f"\n  - and {len(bad) - _MAX_SHOWN} more" if len(bad) > _MAX_SHOWN else ""
    raise DataError(
        f"{domain}: {len(bad)} of {total} images cannot be used ({len(bad) / total:.0%}),"
        f" at most {max_bad_frac:.0%} may be (ingest.max_bad_frac){shown}{more}",
        hint="repair or remove these files and hand the data over again",
    )


def _refuse_empty_split(domain: str, good: Sequence[Checked], *, is_test_only_allowed: bool) -> None:
    counts = Counter(pair.split for pair in good)
    empty = [split for split in ("train", "test") if not counts[split]]
    if not empty or (is_test_only_allowed and empty == ["train"]):
        return
    raise DataError(
        f"{domain}: no good image in {' and '.join(empty)}; found {counts['train']} for train and"
        f" {counts['test']} for test, expected at least 1 for each",
        hint="add images with masks; a source without a test split needs two or more",
    )


def _report(folder: Path, domain: str, found: Survey, rows: Sequence[Record], threshold: int) -> Path:
    """Write the report of a domain; returns the page."""
    samples = [*found.good, *found.bad]

    def read(number: int) -> tuple[NDArray[np.uint8] | None, NDArray[np.bool_] | None]:
        sample = samples[number]
        pixels = mask = None
        with contextlib.suppress(ImageError, DataError):
            pixels = load_image(sample.source.image) if sample.source.image else None
            mask = masks_of([sample], found.options, threshold)[0] if pixels is not None else None
        return pixels, mask

    load = view_loader([sample.facts for sample in samples], read)
    summary = summarize(rows, found.findings, domain=domain, format=found.format)
    write_report(folder, summary, found.findings, worst_pictures(found.findings, load))
    return folder / REPORT_HTML


def _write(target: Path, planned: Sequence[Planned], found: Survey, threshold: int, progress: Progress) -> list[Record]:
    """All files of the domain; the manifest is removed first and written last. Returns the rows of the good samples."""
    manifest = target / "manifest.parquet"
    manifest.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        masks = stack.enter_context(staged_folder(target / "annotations"))
        folders = {}
        for split in SPLITS:
            images = stack.enter_context(staged_folder(target / split / "images"))
            (masks / split).mkdir()
            folders[split] = {"images": images, "masks": masks / split}
            points = {p.mask_name: p.checked.source.points for p in planned if p.split == split and _has_points(p)}
            if points:
                write_object(masks / split / POINTS_FILE, points)
        by_image: dict[str, list[Planned]] = {}
        for sample in planned:
            by_image.setdefault(sample.checked.key, []).append(sample)
        written = map_files(
            lambda samples: write_image(samples, folders[samples[0].split], found.options, threshold),
            list(by_image.values()),
            progress,
            "writing",
        )
    records = [record for some in written for record in some]
    write_manifest(manifest, [*records, *(quarantine(sample) for sample in found.bad)])
    return records


def _has_points(planned: Planned) -> bool:
    """Points of an image that was turned say nothing: tools differ in whether they turn it. They are drawn anew.

    Neither do points of all objects, where only some of them or one of them is the sample.
    """
    source = planned.checked.source
    is_whole = isinstance(source.annotation, MaskFiles) and len(source.annotation.paths) == 1
    return source.points is not None and is_whole and planned.checked.orientation == 1
