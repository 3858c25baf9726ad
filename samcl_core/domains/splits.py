"""Which images are for training, for model choice and for testing: by the source, by name, or seeded and by group."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from samcl_core.config import SourceParams
from samcl_core.errors import DataError

__all__ = ["SplitItem", "assign_splits", "cap_samples", "groups_of", "listed_names", "named_images"]

_MAX_LIST_BYTES = 1 << 26
_IMAGE_COLUMNS = ("image", "image_id", "image_name", "file", "file_name", "filename", "name", "id")


@dataclass(frozen=True)
class SplitItem:
    """One image to be put into a split.

    Attributes:
        key: its path in the source.
        split: what the source says, ``None`` for nothing.
        group: images of one group never stand in two splits; empty for none.
    """

    key: str
    split: str | None = None
    group: str = ""


def assign_splits(
    items: Sequence[SplitItem],
    *,
    test: float | Sequence[str],
    val: float | Sequence[str],
    seed: int,
    twins: Iterable[Collection[str]] = (),
    others: Sequence[str] = (),
) -> dict[str, str]:
    """The split of every image.

    Lists of names come first, then the source's own splits. A source without a test split gets one: whole groups, in
    the order of a sha256 of ``seed`` and the group's name, until round(``test`` n) images, at least one, are chosen; so
    the choice depends neither on order nor on the other groups' names. The validation split is then drawn from the
    training images in the same way, where ``val`` is above 0 and the source has none.

    Args:
        items: the images.
        test: share of all images, or names.
        val: share of the training images, or names.
        seed: of the workspace.
        twins: sets of keys that must not be torn apart by a seeded split (near-duplicates).
        others: images that lists may name, too, although they get no split: they cannot be used.

    Returns:
        Key to ``train``, ``val`` or ``test``.

    Raises:
        DataError: a name is no image, or names put one group into two splits.
    """
    given = {item.key: item.split for item in items}
    for split, names in (("test", test), ("val", val)):
        if not isinstance(names, int | float):
            chosen = named_images([*given, *others], names, split)
            given = {key: split if key in chosen else (None if old == split else old) for key, old in given.items()}
    clusters = _clusters(items, twins)
    has_test = any(split == "test" for split in given.values())
    has_val = any(split == "val" for split in given.values())
    result = {key: split or "train" for key, split in given.items()}
    _refuse_torn_groups(items, given, result)
    if not has_test and isinstance(test, int | float):
        result = _drawn(result, clusters, float(test), "test", seed)
    if not has_val and isinstance(val, int | float) and val > 0:
        result = _drawn(result, clusters, float(val), "val", seed)
    return result


def cap_samples(keys: Sequence[str], limit: int | None, seed: int) -> list[str]:
    """At most ``limit`` of the keys, in their order: those that a sha256 of ``seed`` and the key puts first."""
    if limit is None or len(keys) <= limit:
        return list(keys)
    chosen = set(sorted(keys, key=lambda key: _rank(seed, "cap", key))[:limit])
    return [key for key in keys if key in chosen]


def groups_of(keys: Sequence[str], options: SourceParams, source: Path) -> dict[str, str]:
    """The group of each image, by the pattern or the table that the options name; empty without either.

    Args:
        keys: paths of the images in the source.
        options: ``group`` or ``group_column``.
        source: the folder that holds the table.

    Raises:
        DataError: the pattern fits no image, the table cannot be used, or it leaves an image out.
    """
    if options.group is not None:
        pattern = re.compile(options.group)
        found = {key: match.group(1) or "" for key in keys if (match := pattern.search(key))}
        if not found:
            raise DataError(
                f"group {options.group!r} fits none of {len(keys)} images, such as {keys[0] if keys else 'none'}",
                hint="correct the pattern; it is searched in the image's path",
            )
        return found
    return {} if options.group_column is None else _groups_of_table(keys, options.group_column, source)


def named_images(keys: Sequence[str], patterns: Sequence[str], what: str = "test") -> set[str]:
    """Which images a list names: by path, file name or stem; ``*`` and ``?`` stand for any letters.

    Args:
        keys: relative paths of the images.
        patterns: the list.
        what: the option that holds it, for messages.

    Raises:
        DataError: a pattern names no image.
    """
    by_name: dict[str, set[str]] = {}
    for key in keys:
        for name in _names_of(key):
            by_name.setdefault(name, set()).add(key)
    chosen: set[str] = set()
    for pattern in patterns:
        found = by_name.get(pattern) or {
            key for name in fnmatch.filter(by_name, pattern) for key in by_name[name] if _is_pattern(pattern)
        }
        if not found:
            raise DataError(
                f"domain.yaml: {what} names {pattern!r}, which is none of the {len(keys)} images",
                hint=f"correct `{what}` in domain.yaml; names are like {keys[0] if keys else 'x.jpg'}",
            )
        chosen |= found
    return chosen


def listed_names(names: Sequence[str], source: Path) -> list[str]:
    """Names of images; ``@FILE`` stands for the lines of a text file in the source.

    Raises:
        DataError: the file is not in the source, or no text.
    """
    lines: list[str] = []
    for name in names:
        if not name.startswith("@"):
            lines.append(name)
            continue
        text = _text_of(source, name[1:])
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    return lines


def _text_of(source: Path, name: str) -> str:
    path = source / name
    if not path.resolve().is_relative_to(source.resolve()) or not path.is_file():
        raise DataError(f"{name} is not a file of the source", hint="give a path inside the data set's folder")
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise DataError(f"{name} has {path.stat().st_size} bytes, expected at most {_MAX_LIST_BYTES}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{name} cannot be read: {exc}", hint="save it as UTF-8 text") from exc


def _groups_of_table(keys: Sequence[str], column: str, source: Path) -> dict[str, str]:
    name, _, wanted = column.rpartition(":")
    text = _text_of(source, name)
    header = text.splitlines()[0] if text else ""
    rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count))
    columns = list(rows.fieldnames or [])
    image_column = next((one for one in _IMAGE_COLUMNS for found in columns if found.lower() == one), None)
    image_column = next((found for found in columns if image_column and found.lower() == image_column), None)
    if wanted not in columns or image_column is None:
        raise DataError(
            f"{name} has the columns {columns}, expected {wanted!r} and one of {list(_IMAGE_COLUMNS)}",
            hint="correct group_column",
        )
    table = {row[image_column] or "": row[wanted] or "" for row in rows}
    found = {key: next((table[one] for one in _names_of(key) if one in table), None) for key in keys}
    missing = [key for key, group in found.items() if group is None]
    if missing:
        raise DataError(
            f"{name} has no row for {missing[0]} and {len(missing) - 1} other images", hint="add them to the table"
        )
    return {key: group for key, group in found.items() if group}


def _clusters(items: Sequence[SplitItem], twins: Iterable[Collection[str]]) -> dict[str, str]:
    """Key to the name of what must stay together: groups, joined where near-duplicates connect them."""
    parent = {item.key: item.key for item in items}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    by_group: dict[str, list[str]] = {}
    for item in items:
        if item.group:
            by_group.setdefault(item.group, []).append(item.key)
    for members in (*by_group.values(), *twins):
        known = sorted(key for key in members if key in parent)
        for key in known[1:]:
            # The smallest key names a cluster, whatever the order.
            first, second = sorted((root(known[0]), root(key)))
            parent[second] = first
    groups = {item.key: item.group for item in items}
    return {key: groups[root(key)] or root(key) for key in parent}


def _drawn(
    splits: Mapping[str, str], clusters: Mapping[str, str], share: float, split: str, seed: int
) -> dict[str, str]:
    """Move clusters of training images into ``split`` until its share is reached; one cluster stays for training."""
    members: dict[str, list[str]] = {}
    for key, found in splits.items():
        if found == "train":
            members.setdefault(clusters[key], []).append(key)
    num_wanted = max(1, round(share * sum(map(len, members.values()))))
    result, num_chosen = dict(splits), 0
    ranked = sorted(members, key=lambda name: _rank(seed, split, name))
    for name in ranked[:-1]:
        if num_chosen >= num_wanted:
            break
        # A group that would overshoot by more than it helps waits for another one.
        if num_chosen and num_chosen + len(members[name]) - num_wanted > num_wanted - num_chosen:
            continue
        result.update(dict.fromkeys(members[name], split))
        num_chosen += len(members[name])
    return result


def _rank(seed: int, split: str, name: str) -> tuple[bytes, str]:
    text = f"{seed}:{name}" if split == "test" else f"{seed}:{split}:{name}"
    return hashlib.sha256(text.encode()).digest(), name


def _refuse_torn_groups(items: Sequence[SplitItem], given: Mapping[str, str | None], result: Mapping[str, str]) -> None:
    """Splits that are given tear no group apart. What nobody gave a split does not count: it is drawn."""
    if not any(given.values()):
        return
    seen: dict[str, tuple[str, str]] = {}
    for item in items:
        if not item.group:
            continue
        key, split = seen.setdefault(item.group, (item.key, result[item.key]))
        if split != result[item.key]:
            raise DataError(
                f"group {item.group!r} stands in two splits: {key} is for {split}, {item.key} for {result[item.key]}",
                hint="correct the lists or the group; or leave the splits to the seed",
            )


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _names_of(key: str) -> tuple[str, str, str]:
    path = PurePosixPath(key)
    return key, path.name, path.stem
