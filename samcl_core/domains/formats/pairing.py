"""Pairs images with masks by where they lie and what they are called; a mask may consist of several files."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from samcl_core.domains.annotations import Annotation, MaskFiles
from samcl_core.domains.formats.base import SourceImage, bare_stem, image_files, pair_files, source_points

__all__ = [
    "Annotate",
    "folders_below",
    "folders_inside",
    "images_below",
    "is_mask_name",
    "pair_names",
    "pair_trees",
    "sorted_by_path",
]

Annotate = Callable[[tuple[Path, ...]], Annotation]
"""Makes the annotation of one image from its mask files."""

_NUMBER = re.compile(r"(.+?)([_-]?)(\d+)")
_LAST_WORD = re.compile(r".([ ._-][A-Za-z][A-Za-z0-9]*)$")
_FIRST_WORD = re.compile(r"^([A-Za-z][A-Za-z0-9]*[ ._-]).")

Found = dict[Path, list[Path]]
Keys = Mapping[Path, str]


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and its sub-folders (by suffix, nothing hidden), sorted by path. Follows no links."""
    return sorted(path for place in folders_below(folder) for path in image_files(place))


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and its sub-folders at any depth, in order, nothing hidden. Follows no links; none if it is missing."""
    for where, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield Path(where)


def folders_inside(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted, nothing hidden; none if it is missing."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def sorted_by_path(entries: Sequence[SourceImage]) -> list[SourceImage]:
    """The entries by the path that names them."""
    return sorted(entries, key=lambda entry: entry.path)


def is_mask_name(name: str) -> bool:
    """Does a file call itself a mask: ``x_mask.png``, ``gt_x.png``, ``x_mask_2.png``?"""
    numbered = _numbered(name)
    return bare_stem(name) != Path(name).stem or (numbered is not None and numbered[2])


def pair_trees(
    images: Path, masks: Path, split: str | None = None, annotate: Annotate = MaskFiles
) -> list[SourceImage]:
    """Pair the files below two folders. Every file is in exactly one entry.

    Masks lie in the same sub-folder as their image (case does not count), where they pair as ``pair_names`` pairs
    them, or in a sub-folder called like the image: each file in ``masks/a/x/`` is an object of ``images/a/x.jpg``.
    Where only one of the folders has sub-folders, names that occur once pair across them.
    """
    pictures, drawings = images_below(images), images_below(masks)
    found: Found = {}
    left = _pair_places(_by_folder(pictures, images), _by_folder(drawings, masks), found)
    left = _adopt_folders(pictures, images, left, masks, found)
    if any(path.parent != images for path in pictures) != any(path.parent != masks for path in drawings):
        left = _pair_flat(pictures, left, found)
    return _entries(pictures, left, found, split, annotate)


def pair_names(
    images: Sequence[Path], masks: Sequence[Path], split: str | None = None, annotate: Annotate = MaskFiles
) -> list[SourceImage]:
    """Pair the files of one place by name. Every file is in exactly one entry.

    First by the rules of ``base.pair_files``. Numbered masks (``x_mask_1.png``, ``x_1.png``) are objects of one image.
    Where that pairs nothing, the words that all masks or all images begin or end with do not count
    (``x_sat.jpg`` with ``x_L.png``).

    Args:
        images: with distinct file names.
        masks: of several with one name, the first one by path counts; the others get no image.
        split: of all of them.
        annotate: makes the annotations.
    """
    found: Found = {}
    images, masks = sorted(images), sorted(masks)
    first = {mask.name: mask for mask in reversed(masks)}
    left = _pair_place(images, [mask for mask in masks if first[mask.name] is mask], found)
    left += [mask for mask in masks if first[mask.name] is not mask]
    return _entries(images, left, found, split, annotate)


def _entries(
    images: Sequence[Path], left: Sequence[Path], found: Found, split: str | None, annotate: Annotate
) -> list[SourceImage]:
    points = cache(source_points)
    entries = []
    for image in images:
        masks = tuple(found.get(image, ()))
        drawn = points(masks[0].parent).get(masks[0].name) if len(masks) == 1 else None
        entries.append(SourceImage(image, annotate(masks) if masks else None, split, drawn))
    return entries + [SourceImage(None, annotate((mask,)), split) for mask in left]


def _by_folder(paths: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    places: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        places[path.parent].append(path)
    return {folder.relative_to(root).as_posix(): files for folder, files in places.items()}


def _pair_places(images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]], found: Found) -> list[Path]:
    """Pair each sub-folder with the one of the same name; returns the masks that are left."""
    others = [place for place in images if place not in masks]
    folded = Counter(place.casefold() for place in [*others, *(place for place in masks if place not in images)])
    partner = {place.casefold(): place for place in others if folded[place.casefold()] == 2}
    left = []
    for place, files in masks.items():
        left += _pair_place(images.get(place) or images.get(partner.get(place.casefold(), ""), []), files, found)
    return left


def _pair_place(images: Sequence[Path], masks: Sequence[Path], found: Found, *, learn: bool = True) -> list[Path]:
    pairs = pair_files(images, masks, None)
    exact = {pair.image: pair.annotation for pair in pairs if pair.image and pair.annotation}
    found.update({image: list(annotation.files) for image, annotation in exact.items()})
    left = _adopt_numbered(images, [pair.path for pair in pairs if pair.image is None], found)
    if learn and left and not any(image in found for image in images):
        left = _pair_without_words(images, left, found)
    return left


def _adopt_numbered(images: Sequence[Path], masks: Sequence[Path], found: Found) -> list[Path]:
    """``x_mask_1.png`` belongs to ``x.jpg``, also beside ``x_mask.png``; ``x_1.png`` only where there is no other."""
    owners = _unique({image: image.stem for image in images})
    adopted: dict[Path, list[tuple[int, Path]]] = defaultdict(list)
    left = []
    for mask in masks:
        stem, number, says_mask = _numbered(mask.name) or ("", 0, False)
        owner = owners.get(stem)
        if owner is None or (owner in found and not says_mask):
            left.append(mask)
        else:
            adopted[owner].append((number, mask))
    for owner, numbered in adopted.items():
        found[owner] = [*found.get(owner, []), *(mask for _, mask in sorted(numbered))]
    return left


def _numbered(name: str) -> tuple[str, int, bool] | None:
    """(stem of the image, number, does the name say that it is a mask) of ``x_mask_1``, ``x_1_mask``, ``x_1``."""
    stem = bare_stem(name)
    match = _NUMBER.fullmatch(stem)
    if match is None:
        return None
    base = bare_stem(f"{match[1]}.png")
    is_marked = base != match[1]
    if not match[2] and not is_marked:
        return None
    return base, int(match[3]), is_marked or stem != Path(name).stem


def _adopt_folders(
    pictures: Sequence[Path], images: Path, left: Sequence[Path], masks: Path, found: Found
) -> list[Path]:
    """Files in ``masks/a/x/`` belong to ``images/a/x.jpg`` where that has no mask yet."""
    if not left:
        return []
    owners = _unique({image: image.relative_to(images).with_suffix("").as_posix() for image in pictures})
    remaining = []
    for place, files in _by_folder(left, masks).items():
        owner = owners.get(place)
        if owner is None or owner in found:
            remaining += files
        else:
            found[owner] = sorted(files, key=_natural)
    return remaining


def _pair_flat(pictures: Sequence[Path], left: Sequence[Path], found: Found) -> list[Path]:
    """Pair across sub-folders what has no partner yet, by names that occur once."""
    stems = Counter(image.stem for image in pictures)
    names = Counter(mask.name for mask in left)
    lonely = [image for image in pictures if image not in found and stems[image.stem] == 1]
    remaining = _pair_place(lonely, [mask for mask in left if names[mask.name] == 1], found, learn=False)
    return remaining + [mask for mask in left if names[mask.name] > 1]


def _pair_without_words(images: Sequence[Path], masks: Sequence[Path], found: Found) -> list[Path]:
    for mask_keys in _wordless(masks):
        # The words of a single image are its name.
        for image_keys in _wordless(images) if len(images) > 1 else _wordless(images[:1], 0):
            owners, keys = _unique(image_keys), _unique(mask_keys)
            matched = {keys[key]: owners[key] for key in keys if key in owners}
            if matched:
                found.update({image: [mask] for mask, image in matched.items()})
                return [mask for mask in masks if mask not in matched]
    return list(masks)


def _wordless(paths: Sequence[Path], most: int = 4) -> Iterator[Keys]:
    """The stems, then without one word more, and one more, that all of them end or begin with."""
    stems = [path.stem for path in paths]
    yield dict(zip(paths, stems, strict=True))
    for _ in range(most):
        shorter = _shorter(stems)
        if shorter == stems:
            return
        stems = shorter
        yield dict(zip(paths, stems, strict=True))


def _shorter(stems: Sequence[str]) -> list[str]:
    last, first = (pattern.search(stems[0]) if stems else None for pattern in (_LAST_WORD, _FIRST_WORD))
    if last and all(len(stem) > len(last[1]) and stem.lower().endswith(last[1].lower()) for stem in stems):
        return [stem[: -len(last[1])] for stem in stems]
    if first and all(len(stem) > len(first[1]) and stem.lower().startswith(first[1].lower()) for stem in stems):
        return [stem[len(first[1]) :] for stem in stems]
    return list(stems)


def _unique(keys: Keys) -> dict[str, Path]:
    """Key to path, of the keys that only one path has."""
    counts = Counter(keys.values())
    return {key: path for path, key in keys.items() if counts[key] == 1}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``2.png`` before ``10.png``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
