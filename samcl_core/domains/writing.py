"""A domain's files from checked samples: names, upright clean images and masks, rows of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samcl_core.config import SourceParams
from samcl_core.domains.annotations import MaskFiles
from samcl_core.domains.images import load_image, save_png
from samcl_core.domains.layout import SPLITS
from samcl_core.domains.manifest import QUARANTINED, Record
from samcl_core.domains.validation import Checked, masks_of
from samcl_core.files import copy_file, sha256_file

__all__ = ["Planned", "plan_names", "quarantine", "write_image"]


@dataclass(frozen=True)
class Planned:
    """A good sample with the file names it gets inside its split."""

    checked: Checked
    split: str
    image_name: str
    mask_name: str


def plan_names(good: Sequence[Checked]) -> list[Planned]:
    """File names for samples that have a split: the source's own, and ``<stem>.png`` for what is written anew.

    A mask with its image's name keeps it (published rule); any other mask becomes ``<image stem>.png``. Names that
    would clash get a number: so do the objects of one image, each with a copy of it. The published scripts pair files
    by sorted order: where names would sort differently, all masks of the split take their images' names.
    """
    planned: list[Planned] = []
    for split in SPLITS:
        members = sorted(
            (sample for sample in good if sample.split == split), key=lambda sample: (sample.key, sample.part or 0)
        )
        image_names = _unique([_image_name(sample) for sample in members])
        mask_names = [_mask_name(sample, name) for sample, name in zip(members, image_names, strict=True)]
        pairs = sorted(zip(image_names, mask_names, strict=True))
        aligned = [name for _, name in pairs] == sorted(mask_names)
        if not aligned or len({name.casefold() for name in mask_names}) < len(mask_names):
            mask_names = image_names
        planned += [
            Planned(sample, split, image_name, mask_name)
            for sample, image_name, mask_name in zip(members, image_names, mask_names, strict=True)
        ]
    return planned


def write_image(
    planned: Sequence[Planned], target: Mapping[str, Path], options: SourceParams, threshold: int
) -> list[Record]:
    """Write the samples of one image and describe them.

    Files that any tool reads alike are copied byte for byte. Others become upright PNG: images RGB, masks 0 and 255.

    Args:
        planned: all samples of the image, at least one.
        target: ``images`` and ``masks`` to the folders of the samples' split.
        options: what the samples were checked with.
        threshold: the same.
    """
    checked = planned[0].checked
    source, annotation = checked.source.image, checked.source.annotation
    assert source is not None
    if not checked.keep_image:
        pixels = load_image(source)
    drawn = () if checked.keep_mask else masks_of([sample.checked for sample in planned], options, threshold)
    records = []
    for at, sample in enumerate(planned):
        image, mask = target["images"] / sample.image_name, target["masks"] / sample.mask_name
        if checked.keep_image:
            copy_file(source, image)
        else:
            save_png(image, pixels)
        if checked.keep_mask and annotation is not None:
            copy_file(annotation.files[0], mask)
        else:
            save_png(mask, drawn[at])
        records.append(_record(sample, image, mask))
    return records


def _record(sample: Planned, image: Path, mask: Path) -> Record:
    checked = sample.checked
    return Record(
        id=f"{sample.split}/images/{image.name}",
        split=sample.split,
        image=f"{sample.split}/images/{image.name}",
        mask=f"{sample.split}/masks/{mask.name}",
        width=checked.size[0],
        height=checked.size[1],
        foreground_frac=checked.facts.mask.foreground_frac if checked.facts.mask else 0.0,
        label=checked.facts.label,
        instance=-1 if checked.part is None else checked.part,
        # A file that was copied has its source's digest.
        image_sha256=checked.facts.image_sha256 if checked.keep_image else sha256_file(image),
        mask_sha256=checked.facts.mask_digest if checked.keep_mask else sha256_file(mask),
        source_image=checked.facts.image_file,
        source_mask=checked.facts.mask_file,
    )


def quarantine(checked: Checked) -> Record:
    """The manifest's row of a sample that cannot be used."""
    return Record(
        id=checked.key,
        split=checked.split or "",
        width=checked.size[0],
        height=checked.size[1],
        label=checked.facts.label,
        instance=-1 if checked.part is None else checked.part,
        source_image=checked.facts.image_file,
        source_mask=checked.facts.mask_file,
        status=QUARANTINED,
        reason=checked.reason,
    )


def _image_name(sample: Checked) -> str:
    name = Path(sample.key).name
    return name if sample.keep_image else f"{Path(name).stem}.png"


def _mask_name(sample: Checked, image_name: str) -> str:
    annotation = sample.source.annotation
    is_file = isinstance(annotation, MaskFiles) and len(annotation.paths) == 1
    same_name = is_file and annotation is not None and annotation.files[0].name == Path(sample.key).name
    return image_name if same_name else f"{Path(image_name).stem}.png"


def _unique(names: Sequence[str]) -> list[str]:
    """The names, made distinct also where case does not count: the second ``x.png`` becomes ``x_2.png``."""
    counts = Counter(name.casefold() for name in names)
    taken = {name.casefold() for name in names if counts[name.casefold()] == 1}
    last: dict[str, int] = {}
    unique = []
    for name in names:
        folded = name.casefold()
        candidate, number = name, last.get(folded, 1)
        while counts[folded] > 1 and candidate.casefold() in taken:
            number += 1
            candidate = f"{Path(name).stem}_{number}{Path(name).suffix}"
        last[folded] = number
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique
