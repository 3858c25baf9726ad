"""What the codes of mask files mean: the lists of classes that come with a data set."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from samcl_core.domains.annotations import Annotation, Code, CodedMask, MaskFiles
from samcl_core.domains.formats.base import ReadOptions
from samcl_core.domains.formats.pairing import Annotate
from samcl_core.domains.formats.reading import Unreadable
from samcl_core.errors import DataError

__all__ = ["LABEL_MAPS", "annotator", "read_label_map"]

LABEL_MAPS = ("labelmap.txt", "label_colors.txt", "class_dict.csv", "classes.txt", "codes.txt")
"""Names of the files that are read, the first one that is there."""

_BACKGROUND = frozenset({"background", "bg", "ignore", "none", "unlabeled", "unlabelled", "void"})
_MAX_BYTES = 1 << 20
_HINT = "correct or remove this file, or give `codes` in domain.yaml"
_COLOUR = r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})"
_CVAT = re.compile(rf"(?P<name>[^:]+):{_COLOUR}(?::.*)?")
_COLOUR_FIRST = re.compile(rf"{_COLOUR}[\s,]+(?P<name>\S.*)")
_COLOUR_LAST = re.compile(rf"(?P<name>\S.*?)[\s,]+{_COLOUR}")
_VALUE_FIRST = re.compile(r"(?P<value>\d{1,5})\s*[\s:,]\s*(?P<name>[^\d\s:,].*)")
_CSV_NAMES = ("name", "class", "class_name", "label")
_CSV_COLOURS = (("r", "g", "b"), ("red", "green", "blue"))
_CSV_VALUES = ("value", "index", "id", "code")


def annotator(root: Path, options: ReadOptions) -> Annotate:
    """How the mask files of a source are read: as codes of classes where the user or the source says what they mean.

    A ``classes.txt`` of one class without a code is no map: its masks are black and white, and show that class.

    Raises:
        DataError: the source's label map cannot be understood.
    """
    path = next((root / name for name in LABEL_MAPS if (root / name).is_file()), None)
    classes = options.codes or (read_label_map(path) if path is not None else {})
    if isinstance(classes, str):
        label = classes
        return lambda paths: MaskFiles(paths, (label,) * len(paths))
    return (lambda paths: _coded(paths, classes)) if classes else MaskFiles


def _coded(paths: tuple[Path, ...], classes: Mapping[Code, str]) -> Annotation:
    if len(paths) == 1:
        return CodedMask(paths[0], classes)
    shown = ", ".join(path.name for path in paths[:3])
    message = f"{paths[0]}: one of {len(paths)} masks of an image ({shown}), expected one whose codes are classes"
    return Unreadable(paths[0], message)


def read_label_map(path: Path) -> Mapping[Code, str] | str:
    """Code to class, without the background.

    Text files have one class a line: ``name:red,green,blue::`` (CVAT), ``red green blue name`` or the other way round
    (CamVid), ``value name``, or names alone. These count from 0 where one of them is the background, else from 1.
    ``__ignore__`` (labelme) does not count. Tables have a header: ``name,r,g,b`` or ``name,value``.

    Returns:
        The map; a single name without a code as text.

    Raises:
        DataError: unreadable, too large, a line of another form, or a code twice.
    """
    lines = _lines(path)
    pairs = _from_table(path, lines) if path.suffix.lower() == ".csv" else _from_text(path, lines)
    if isinstance(pairs, str):
        return pairs
    counts = Counter(code for code, _ in pairs)
    twice = next((code for code, count in counts.items() if count > 1), None)
    if twice is not None:
        names = ", ".join(name for code, name in pairs if code == twice)
        raise DataError(f"{path}: {twice} stands for several classes: {names}", hint=_HINT)
    classes = {code: name for code, name in pairs if not _is_background(name)}
    if not classes:
        raise DataError(f"{path}: names no class besides the background", hint=_HINT)
    return classes


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that say something."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: has {path.stat().st_size} bytes, expected a short list of classes", hint=_HINT)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}", hint=_HINT) from exc
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith(("#", "//"))]


def _from_text(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[Code, str]] | str:
    form = next(
        (f for f in (_CVAT, _COLOUR_FIRST, _COLOUR_LAST, _VALUE_FIRST) if lines and f.fullmatch(lines[0][1])), None
    )
    if form is None:
        return _from_names([line for _, line in lines])
    pairs: list[tuple[Code, str]] = []
    for number, line in lines:
        match = form.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path}: line {number} is {line[:60]!r}, expected the form of {lines[0][1][:60]!r}", hint=_HINT
            )
        name = match["name"].strip()
        if form is _VALUE_FIRST:
            pairs.append((_number(path, number, match["value"]), name))
        else:
            first = 2 if form in (_CVAT, _COLOUR_LAST) else 1
            pairs.append((_colour(path, number, [match[first + at] for at in range(3)]), name))
    return pairs


def _from_names(names: Sequence[str]) -> list[tuple[Code, str]] | str:
    counted = [name for name in names if name != "__ignore__"]
    if len(counted) == 1 and not _is_background(counted[0]):
        return counted[0]
    return list(enumerate(counted, start=0 if any(_is_background(name) for name in counted) else 1))


def _from_table(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[Code, str]]:
    rows = list(csv.reader((line for _, line in lines), skipinitialspace=True))
    header = [column.strip().lower() for column in rows[0]] if rows else []
    name = next((header.index(column) for column in _CSV_NAMES if column in header), None)
    colours = next(([header.index(c) for c in three] for three in _CSV_COLOURS if set(three) <= set(header)), None)
    value = next((header.index(column) for column in _CSV_VALUES if column in header), None)
    if name is None or (colours is None and value is None):
        raise DataError(f"{path}: the header is {header}, expected name,r,g,b or name,value", hint=_HINT)
    pairs: list[tuple[Code, str]] = []
    for (number, line), row in zip(lines[1:], rows[1:], strict=False):
        if len(row) < len(header):
            raise DataError(f"{path}: line {number} is {line[:60]!r}, expected {len(header)} columns", hint=_HINT)
        code = _colour(path, number, [row[at] for at in colours]) if colours else _number(path, number, row[value or 0])
        pairs.append((code, row[name].strip()))
    return pairs


def _colour(path: Path, line: int, parts: Sequence[str]) -> tuple[int, int, int]:
    red, green, blue = (_number(path, line, part, 255) for part in parts)
    return red, green, blue


def _number(path: Path, line: int, text: str, most: int = 65535) -> int:
    if not text.strip().isdecimal() or int(text) > most:
        raise DataError(f"{path}: line {line} has the code {text!r}, expected a number from 0 to {most}", hint=_HINT)
    return int(text)


def _is_background(name: str) -> bool:
    return name.strip("_ ").lower() in _BACKGROUND
