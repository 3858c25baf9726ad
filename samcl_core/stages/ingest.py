"""A data set as it arrived becomes a domain: detected, checked, split, written upright and clean, with a manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samcl_core.config import Params
from samcl_core.domains.drops import card_of, named_images
from samcl_core.domains.formats import Format, SourcePair, detect_format, get_format, unwrap
from samcl_core.domains.layout import POINTS_FILE, SPLITS
from samcl_core.domains.manifest import Record, write_manifest
from samcl_core.domains.points import write_object
from samcl_core.domains.validation import (
    Checked,
    Planned,
    assign_splits,
    check_pair,
    plan_names,
    quarantine,
    write_pair,
)
from samcl_core.domains.workers import map_files
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import staged_folder
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import Places

__all__ = ["Survey", "refuse_unusable", "run", "survey"]

_MAX_SHOWN = 5


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        format: name of its layout.
        good: pairs that can be used, each with its split.
        bad: pairs that cannot, each with the reason.
    """

    format: str
    good: tuple[Checked, ...]
    bad: tuple[Checked, ...]

    @property
    def reasons(self) -> dict[str, str]:
        """Path to what is wrong, of the bad pairs by name."""
        return {pair.key: pair.reason for pair in sorted(self.bad, key=lambda pair: pair.key)}


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write images, annotations and ``manifest.parquet`` of ``domain`` from ``data/raw/<domain>``.

    Pairs that cannot be used are quarantined: they are rows of the manifest, with the reason, and nothing else.

    Returns:
        Counts: ``num_train``, ``num_test``, ``num_quarantined``, ``reasons`` of the quarantine, ``num_shared_images``
        (the same bytes in train and test), the ``format`` found.

    Raises:
        LayoutError: nothing arrived, or not in a known layout.
        DataError: too large a share of the pairs is bad, or a split has no good pair. Nothing was written.
    """
    places = Places(root)
    raw = places.raw(domain)
    declared = params.domains[domain]
    found = survey(raw, params, declared.format, progress)
    refuse_unusable(found, domain, declared.role, params.ingest.max_bad_frac)
    threshold = params.ingest.mask_threshold or 128
    records = _write(places.domain(domain), raw, plan_names(found.good), found.bad, threshold, progress)
    return {
        "domain": domain,
        "format": found.format,
        **{f"num_{split}": sum(record.split == split for record in records) for split in SPLITS},
        "num_quarantined": len(found.bad),
        "reasons": found.reasons,
        "num_shared_images": _num_shared(records),
    }


def survey(raw: Path, params: Params, format: str = "auto", progress: Progress = silent) -> Survey:
    """Look at every file of a source; nothing is written. A ``domain.yaml`` in it may say what the test split is.

    Raises:
        LayoutError: nothing arrived, or not in a known layout.
        ConfigError: ``domain.yaml`` is wrong.
        DataError: its ``test`` names what is not there.
    """
    threshold = params.ingest.mask_threshold or 128
    test = card_of(raw).test if raw.is_dir() else None
    source_format, pairs = _scan(raw, format)
    checked = map_files(lambda pair: check_pair(pair, raw, threshold), pairs, progress, "checking images")
    good = [pair for pair in checked if not pair.reason]
    if isinstance(test, list):
        chosen = named_images([pair.key for pair in checked], test)
        good = [replace(pair, split="test" if pair.key in chosen else "train") for pair in good]
    share = test if isinstance(test, float) else params.ingest.test_frac
    good = assign_splits(good, share, params.seed)
    return Survey(source_format.name, tuple(good), tuple(pair for pair in checked if pair.reason))


def refuse_unusable(found: Survey, domain: str, role: str, max_bad_frac: float) -> None:
    """Nothing, when a domain can be made of it.

    Raises:
        DataError: too large a share of the pairs is bad, or a split has no good pair.
    """
    _refuse_bad_share(domain, found.bad, len(found.good) + len(found.bad), max_bad_frac)
    _refuse_empty_split(domain, found.good, is_test_only_allowed=role == "unseen")


def _scan(raw: Path, name: str) -> tuple[Format, list[SourcePair]]:
    """The format of a source and all its pairs, sorted.

    Raises:
        LayoutError: there is nothing, or nothing that fits.
    """
    if not raw.is_dir():
        raise LayoutError(f"{raw} is missing", hint=f"dvc checkout data/raw/{raw.name}, or samcl ingest PATH")
    source = unwrap(raw)
    source_format = detect_format(source) if name == "auto" else get_format(name)
    pairs = source_format.scan(source)
    if not pairs:
        raise LayoutError(f"{raw}: the folders of the format {source_format.name!r} hold no image")
    return source_format, pairs


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
    empty = [split for split in SPLITS if not counts[split]]
    if not empty or (is_test_only_allowed and empty == ["train"]):
        return
    raise DataError(
        f"{domain}: no good image in {' and '.join(empty)}; found {counts['train']} for train and"
        f" {counts['test']} for test, expected at least 1 for each",
        hint="add images with masks; a source without a test split needs two or more",
    )


def _write(
    target: Path, raw: Path, planned: Sequence[Planned], bad: Sequence[Checked], threshold: int, progress: Progress
) -> list[Record]:
    """All files of the domain; the manifest is removed first and written last. Returns the rows of the good pairs."""
    manifest = target / "manifest.parquet"
    manifest.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        masks = stack.enter_context(staged_folder(target / "annotations"))
        images = {split: stack.enter_context(staged_folder(target / split / "images")) for split in SPLITS}
        for split in SPLITS:
            (masks / split).mkdir()
            points = {p.mask_name: p.checked.pair.points for p in planned if p.split == split and _has_points(p)}
            if points:
                write_object(masks / split / POINTS_FILE, points)
        records = map_files(
            lambda p: write_pair(p, images[p.split], masks / p.split, raw, threshold), planned, progress, "writing"
        )
    write_manifest(manifest, [*records, *(quarantine(pair, raw) for pair in bad)])
    return records


def _has_points(planned: Planned) -> bool:
    """Points of an image that was turned say nothing: tools differ in whether they turn it. They are drawn anew."""
    return planned.checked.pair.points is not None and planned.checked.orientation == 1


def _num_shared(records: Sequence[Record]) -> int:
    digests = {split: {record.image_sha256 for record in records if record.split == split} for split in SPLITS}
    return len(digests["train"] & digests["test"])
