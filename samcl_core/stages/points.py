"""Masks and prompts of a domain: annotations are copied verbatim, points are kept or drawn."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from samcl_core.config import Params, PromptParams
from samcl_core.domains.images import load_mask
from samcl_core.domains.layout import BOXES_FILE, POINTS_FILE, SPLITS, Domain
from samcl_core.domains.manifest import OK
from samcl_core.domains.points import (
    WHOLE_FRAME,
    Box,
    PointSet,
    box_of,
    read_points,
    sample_points,
    write_boxes,
    write_points,
)
from samcl_core.domains.workers import map_files
from samcl_core.errors import DataError, LayoutError
from samcl_core.files import staged_folder
from samcl_core.progress import Progress, silent
from samcl_core.stages.places import Places

__all__ = ["run"]


def run(root: Path, params: Params, domain: str, progress: Progress = silent) -> dict[str, Any]:
    """Write ``<split>/masks`` of both splits: the masks, ``points.json`` and, where asked for, ``boxes.json``.

    Points that came with the data are kept when ``prompts.keep_existing`` is on; every other mask gets points drawn
    from its sha256 and the seed.

    Returns:
        Counts: ``num_masks``, ``num_kept`` and ``num_drawn``.

    Raises:
        LayoutError: the domain was not ingested, or an annotation is missing.
        DataError: an annotation is not the one the manifest lists, or kept points cannot be used.
    """
    folder = Places(root).domain(domain)
    rows = Domain(folder).manifest()
    rows = rows[rows["status"] == OK]
    num_kept = num_masks = 0
    for split in SPLITS:
        digests = {
            Path(mask).name: digest
            for mask, digest in zip(rows["mask"], rows["mask_sha256"], strict=True)
            if mask.startswith(f"{split}/")
        }
        num_masks += len(digests)
        num_kept += _write_split(folder, split, digests, params.prompts, params.seed, progress)
    return {"domain": domain, "num_masks": num_masks, "num_kept": num_kept, "num_drawn": num_masks - num_kept}


def _write_split(
    folder: Path, split: str, digests: dict[str, str], prompts: PromptParams, seed: int, progress: Progress
) -> int:
    """Write one split's masks and prompts; returns how many masks kept the points they came with."""
    source = folder / "annotations" / split
    existing: dict[str, PointSet] = {}
    if prompts.keep_existing and (source / POINTS_FILE).is_file():
        existing = read_points(source / POINTS_FILE)
    kept = {name: existing[name] for name in digests if name in existing}
    with staged_folder(folder / split / "masks") as target:

        def prompt(name: str) -> tuple[PointSet, Box | None]:
            mask_file = _copy_verified(source / name, target / name, digests[name], folder.name)
            return _prompts_of(mask_file, kept.get(name), digests[name], prompts, seed)

        names = sorted(digests)
        results = dict(zip(names, map_files(prompt, names, progress, f"points of {split}"), strict=True))
        write_points(target / POINTS_FILE, {name: points for name, (points, _) in results.items()})
        if prompts.boxes:
            write_boxes(target / BOXES_FILE, {name: box for name, (_, box) in results.items() if box is not None})
    return len(kept)


def _copy_verified(source: Path, target: Path, sha256: str, domain: str) -> Path:
    """Copy an annotation whose digest is the manifest's."""
    hint = f"dvc checkout, or dvc repro ingest@{domain}"
    try:
        data = source.read_bytes()
    except FileNotFoundError as exc:
        raise LayoutError(f"{source} is missing", hint=hint) from exc
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{source} has sha256 {found}, the manifest says {sha256}", hint=hint)
    target.write_bytes(data)
    return target


def _prompts_of(
    mask_file: Path, kept: PointSet | None, key: str, prompts: PromptParams, seed: int
) -> tuple[PointSet, Box | None]:
    """Points and box of one mask; the mask is read only when something has to be computed from it."""
    if kept is not None and not prompts.boxes:
        return kept, None
    mask = load_mask(mask_file)
    # Of an image without an object nothing smaller than all of it can be said.
    box = (box_of(mask) if mask.any() else WHOLE_FRAME) if prompts.boxes else None
    if kept is not None:
        return kept, box
    points, labels = sample_points(mask, prompts.num_points, prompts.num_background_points, key=key, seed=seed)
    return (tuple((float(x), float(y)) for x, y in points), tuple(int(label) for label in labels)), box
