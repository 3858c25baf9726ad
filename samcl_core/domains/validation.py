"""From source files to a domain's files: pairs are checked; good ones get a split, names and upright clean files."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samcl_core.domains.formats import SourcePair
from samcl_core.domains.images import (
    image_info,
    load_image,
    load_mask,
    read_annotation,
    save_png,
    turn_upright,
)
from samcl_core.domains.layout import SPLITS
from samcl_core.domains.manifest import QUARANTINED, Record
from samcl_core.errors import ImageError
from samcl_core.files import sha256_file

__all__ = ["Checked", "Planned", "assign_splits", "check_pair", "plan_names", "quarantine", "write_pair"]


@dataclass(frozen=True)
class Checked:
    """A source pair and what was found in its files.

    Attributes:
        pair: the files.
        key: the image's (or mask's) path relative to the raw folder; sorts and names the pair.
        split: the source's split, later the assigned one.
        width: of the upright image in pixels.
        height: of the upright image in pixels.
        orientation: EXIF orientation of the image.
        turn_mask: the mask was drawn on the stored pixels, so it needs the image's turn.
        keep_image: the image file can be copied byte for byte.
        keep_mask: the mask file can be copied byte for byte.
        foreground_frac: share of foreground pixels.
        reason: why the pair cannot be used; empty when it can.
    """

    pair: SourcePair
    key: str
    split: str | None
    width: int = 0
    height: int = 0
    orientation: int = 1
    turn_mask: bool = False
    keep_image: bool = True
    keep_mask: bool = True
    foreground_frac: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Planned:
    """A good pair with the file names it gets inside its split."""

    checked: Checked
    split: str
    image_name: str
    mask_name: str


def check_pair(pair: SourcePair, raw: Path, threshold: int) -> Checked:
    """Read both files of a pair whole and say whether they can be used. Never raises for what the files hold."""
    known = next(path for path in (pair.image, pair.mask) if path is not None)
    checked = Checked(pair, known.relative_to(raw).as_posix(), pair.split)
    if pair.image is None:
        return replace(checked, reason="the mask has no image")
    if pair.mask is None:
        return replace(checked, reason="the image has no mask")
    try:
        info = image_info(pair.image)
        load_image(pair.image)
        mask, is_clean = read_annotation(pair.mask, threshold)
    except ImageError as exc:
        return replace(checked, reason=exc.message.replace(f"{raw}/", "").removeprefix(f"{checked.key}: "))
    checked = replace(checked, width=info.width, height=info.height, orientation=info.orientation)
    size = (mask.shape[1], mask.shape[0])
    turn_mask = info.orientation != 1 and size != (info.width, info.height) and size == info.stored_size
    if not turn_mask and size != (info.width, info.height):
        found = f"the mask is {size[0]}x{size[1]} pixels, the image {info.width}x{info.height}"
        return replace(checked, reason=found)
    if not mask.any():
        return replace(checked, reason=f"the mask is empty: no pixel reaches {threshold}")
    return replace(
        checked,
        turn_mask=turn_mask,
        keep_image=info.is_plain,
        keep_mask=is_clean and not turn_mask,
        foreground_frac=float(mask.mean()),
    )


def assign_splits(good: Sequence[Checked], test_frac: float, seed: int) -> list[Checked]:
    """Give every pair a split. The source's splits stay, when it has a test split; pairs without one are then training.

    Otherwise round(``test_frac`` n) pairs, at least one, become the test split: those that a sha256 of ``seed`` and
    their key puts first, so that the choice depends neither on order nor on the other pairs' names.
    """
    if any(pair.split == "test" for pair in good):
        return [replace(pair, split=pair.split or "train") for pair in good]
    num_test = min(max(1, round(test_frac * len(good))), len(good) - 1)
    ranked = sorted(good, key=lambda pair: (hashlib.sha256(f"{seed}:{pair.key}".encode()).digest(), pair.key))
    chosen = {pair.key for pair in ranked[: max(num_test, 0)]}
    return [replace(pair, split="test" if pair.key in chosen else "train") for pair in good]


def plan_names(good: Sequence[Checked]) -> list[Planned]:
    """File names for pairs that have a split: the source's own, and ``<stem>.png`` for what is written anew.

    A mask with its image's name keeps it (published rule); any other mask becomes ``<image stem>.png``. Names that
    would clash get a number. The published scripts pair files by sorted order: where names would sort differently,
    all masks of the split take their images' names.
    """
    planned: list[Planned] = []
    for split in SPLITS:
        members = sorted((pair for pair in good if pair.split == split), key=lambda pair: pair.key)
        image_names = _unique([_image_name(pair) for pair in members])
        mask_names = [_mask_name(pair, name) for pair, name in zip(members, image_names, strict=True)]
        pairs = sorted(zip(image_names, mask_names, strict=True))
        aligned = [name for _, name in pairs] == sorted(mask_names)
        if not aligned or len({name.casefold() for name in mask_names}) < len(mask_names):
            mask_names = image_names
        planned += [
            Planned(pair, split, image_name, mask_name)
            for pair, image_name, mask_name in zip(members, image_names, mask_names, strict=True)
        ]
    return planned


def _image_name(pair: Checked) -> str:
    name = Path(pair.key).name
    return name if pair.keep_image else f"{Path(name).stem}.png"


def _mask_name(pair: Checked, image_name: str) -> str:
    source = pair.pair.mask
    same_name = source is not None and source.name == Path(pair.key).name
    return image_name if same_name else f"{Path(image_name).stem}.png"


def _unique(names: Sequence[str]) -> list[str]:
    """The names, made distinct also where case does not count: the second ``x.png`` becomes ``x_2.png``."""
    counts = Counter(name.casefold() for name in names)
    taken = {name.casefold() for name in names if counts[name.casefold()] == 1}
    unique = []
    for name in names:
        candidate, number = name, 1
        while counts[name.casefold()] > 1 and candidate.casefold() in taken:
            number += 1
            candidate = f"{Path(name).stem}_{number}{Path(name).suffix}"
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def write_pair(planned: Planned, images: Path, masks: Path, raw: Path, threshold: int) -> Record:
    """Write one pair into the folders of its split and describe it.

    Files that any tool reads alike are copied byte for byte. Others become upright PNG: images RGB, masks 0 and 255.
    """
    checked = planned.checked
    source, annotation = checked.pair.image, checked.pair.mask
    assert source is not None and annotation is not None
    image, mask = images / planned.image_name, masks / planned.mask_name
    if checked.keep_image:
        shutil.copyfile(source, image)
    else:
        save_png(image, load_image(source))
    if checked.keep_mask:
        shutil.copyfile(annotation, mask)
    else:
        save_png(mask, _upright_mask(checked, annotation, threshold))
    return Record(
        id=f"{planned.split}/images/{image.name}",
        split=planned.split,
        image=f"{planned.split}/images/{image.name}",
        mask=f"{planned.split}/masks/{mask.name}",
        width=checked.width,
        height=checked.height,
        foreground_frac=checked.foreground_frac,
        image_sha256=sha256_file(image),
        mask_sha256=sha256_file(mask),
        source_image=source.relative_to(raw).as_posix(),
        source_mask=annotation.relative_to(raw).as_posix(),
    )


def _upright_mask(checked: Checked, path: Path, threshold: int) -> NDArray[np.bool_]:
    mask = load_mask(path, threshold)
    return turn_upright(mask, checked.orientation) if checked.turn_mask else mask


def quarantine(checked: Checked, raw: Path) -> Record:
    """The manifest's row of a pair that cannot be used."""
    image, mask = checked.pair.image, checked.pair.mask
    return Record(
        id=checked.key,
        split=checked.split or "",
        width=checked.width,
        height=checked.height,
        source_image=image.relative_to(raw).as_posix() if image else "",
        source_mask=mask.relative_to(raw).as_posix() if mask else "",
        status=QUARANTINED,
        reason=checked.reason,
    )
