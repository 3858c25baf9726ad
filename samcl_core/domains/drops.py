"""What lies in an inbox: which names are drops, when a drop is complete, and what a drop says about itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.config import SourceParams, problems_of, valid_domain_name
from samcl_core.domains.archives import archive_stem, is_archive
from samcl_core.domains.formats import CARD, unwrap
from samcl_core.errors import ConfigError, UsageError
from samcl_core.files import digest_json

__all__ = [
    "DONE",
    "Card",
    "Drop",
    "Entry",
    "Look",
    "card_of",
    "default_name",
    "drops_in",
    "kind_of",
    "next_look",
    "source_options",
]

DONE = ".done"
"""``<drop>.done`` beside a drop says that it is complete."""

_PARTIAL = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".swp")
_NOT_DROPS = re.compile(r"readme(\..*)?|thumbs\.db|desktop\.ini|__macosx", re.IGNORECASE)
_MAX_CARD_BYTES = 1 << 18
_EXAMPLE = "expected for instance:\n  name: Kvasir\n  role: learn\n  label: Polyps\n  test: 0.2"


@dataclass(frozen=True)
class Entry:
    """One name in an inbox.

    Attributes:
        name: of the file or folder.
        is_folder: whether it is one.
        files: relative name of each file (empty for the file itself) to its size in bytes and its time stamp.
    """

    name: str
    is_folder: bool
    files: Mapping[str, tuple[int, float | str]]

    @property
    def digest(self) -> str:
        """Changes whenever a name, size or time changes."""
        return digest_json([self.name, sorted([name, *map(str, stamp)] for name, stamp in self.files.items())])

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.files.values())

    def is_newer_than(self, stamp: float | str) -> bool:
        """Whether any file changed after ``stamp``; False where the times cannot be compared."""
        if isinstance(stamp, str):
            return False
        return any(not isinstance(time, str) and time > stamp for _, time in self.files.values())


@dataclass(frozen=True)
class Look:
    """What the looks so far found.

    Attributes:
        digest: of the entry.
        num: looks in a row that found this digest.
        at: time of the last one that counted, in seconds.
    """

    digest: str
    num: int
    at: float


@dataclass(frozen=True)
class Drop:
    """An entry that is a drop, and whether somebody said that it is complete.

    Attributes:
        entry: its files, without the marker.
        marker: name of the marker beside it, the marker's name inside it, or ``None``.
        waits_for: why it is not complete whatever the looks found; empty when nothing is known.
    """

    entry: Entry
    marker: str | None
    waits_for: str = ""

    def is_complete(self, look: Look, settle_looks: int) -> bool:
        """Marked, or unchanged for so many looks."""
        return not self.waits_for and (self.marker is not None or look.num >= settle_looks)


def drops_in(entries: Iterable[Entry], marker: str) -> list[Drop]:
    """The drops of an inbox by name. Hidden names, markers, read-me files and downloads in progress are none.

    A marker that is older than the drop's newest file does not count: it may be left from an earlier drop.

    Args:
        entries: everything in the inbox.
        marker: name of the file that says, inside a folder, that it is complete.
    """
    everything = {entry.name: entry for entry in entries}
    names = sorted(name for name in everything if _may_be_drop(name))
    return [_as_drop(everything[name], everything, marker) for name in names]


def _may_be_drop(name: str) -> bool:
    hidden = name.startswith((".", "~"))
    return not hidden and not name.lower().endswith((DONE, *_PARTIAL)) and _NOT_DROPS.fullmatch(name) is None


def _as_drop(entry: Entry, everything: Mapping[str, Entry], marker: str) -> Drop:
    files = {name: stamp for name, stamp in entry.files.items() if not (entry.is_folder and name == marker)}
    plain = replace(entry, files=files)
    beside = [f"{name}{DONE}" for name in (entry.name, archive_stem(entry.name))]
    stamps = {name: stamp for name in beside if name in everything for _, stamp in everything[name].files.values()}
    if entry.is_folder and marker in entry.files:
        stamps[marker] = entry.files[marker][1]
    found = next((name for name, stamp in stamps.items() if not plain.is_newer_than(stamp)), None)
    partial = next((name for name in sorted(files) if name.lower().endswith(_PARTIAL)), None)
    if not files:
        return Drop(plain, found, "" if found else "it is empty")
    if partial is not None and found is None:
        return Drop(plain, found, f"{partial or entry.name} is being copied")
    return Drop(plain, found)


def next_look(before: Look | None, digest: str, now: float, min_gap_s: float) -> Look:
    """Count a look. One that comes less than ``min_gap_s`` after the last one that counted says nothing new."""
    if before is None or before.digest != digest or now < before.at:
        return Look(digest, 1, now)
    if now - before.at < min_gap_s:
        return before
    return Look(digest, before.num + 1, now)


class Card(SourceParams):
    """``domain.yaml``: what a data set says about itself. Everything may be left out."""

    name: Annotated[str, AfterValidator(valid_domain_name)] | None = None
    role: Literal["learn", "natural", "unseen"] | None = None
    format: str | None = None
    label: str | None = Field(None, max_length=200)
    notes: str | None = Field(None, max_length=20_000)


def card_of(folder: Path) -> Card:
    """The card of a data set: ``domain.yaml`` in it, or in the folder inside it where an archive added such a level.

    Raises:
        ConfigError: it cannot be read, or holds anything wrong; every problem is listed.
    """
    inner = unwrap(folder)
    levels = [inner, *(parent for parent in inner.parents if folder == parent or folder in parent.parents)]
    path = next((level / CARD for level in levels if (level / CARD).is_file()), None)
    return Card() if path is None else _read_card(path)


def _read_card(path: Path) -> Card:
    hint = f"correct {CARD} or remove it; {_EXAMPLE}"
    try:
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise ConfigError(CARD, [f"has {path.stat().st_size} bytes, expected at most {_MAX_CARD_BYTES}"], hint=hint)
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(CARD, [f"cannot be read: {exc}"], hint=hint) from exc
    except (YAMLError, ValueError) as exc:
        raise ConfigError(CARD, [f"is not YAML: {' '.join(str(exc).split())}"], hint=hint) from exc
    if values is None:
        return Card()
    if not isinstance(values, dict):
        raise ConfigError(CARD, [f"expected a mapping, found {type(values).__name__}"], hint=hint)
    given = {str(key): value for key, value in values.items() if value is not None}
    # Looked at by hand: a few nested aliases of YAML can stand for more text than any memory holds.
    nested = [key for key, value in given.items() if not _is_flat(value)]
    if nested:
        problems = [f"{key}: expected a text, a number, a flat list or a flat table" for key in nested]
        raise ConfigError(CARD, problems, hint=hint)
    try:
        return Card.model_validate(_plain(given))
    except ValidationError as exc:
        raise ConfigError(CARD, _without_twins(problems_of(exc)), hint=hint) from exc


def source_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a source from texts (``classes``: ``a,b``; ``codes``: ``polyp:1,skin:#ffcc00``), as plain values.

    Raises:
        ConfigError: one of them is unknown or cannot be; every problem is listed.
    """
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("test", "val") and (share := _number(value)) is not None:
            read[key] = share
        elif key in ("classes", "test", "val"):
            read[key] = [part.strip() for part in value.split(",") if part.strip()]
        elif key == "codes":
            pairs = [part.rpartition(":") for part in value.split(",") if part.strip()]
            read[key] = {label.strip(): int(code) if code.strip().isdecimal() else code for label, _, code in pairs}
        else:
            read[key] = value
    try:
        options = SourceParams.model_validate(read)
    except ValidationError as exc:
        raise ConfigError("--set", _without_twins(problems_of(exc)), hint="docs/formats.md lists the options") from exc
    plain = options.model_dump(exclude_none=True)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """People write numbers as names and a single file as the test split."""
    plain = {key: str(value) if key in {"name", "label"} else value for key, value in values.items()}
    for key in ("test", "val", "classes"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
        elif isinstance(plain.get(key), list):
            plain[key] = [str(name) for name in plain[key]]
    if isinstance(codes := plain.get("codes"), dict):
        plain["codes"] = {str(label): code for label, code in codes.items()}
    return plain


def _is_flat(value: Any) -> bool:
    scalar = (str, int, float, date)
    inside = list(value.values()) if isinstance(value, dict) else value
    return isinstance(value, scalar) or (isinstance(inside, list) and all(isinstance(one, scalar) for one in inside))


def _without_twins(problems: Sequence[str]) -> list[str]:
    """A value that fits neither kind of ``test`` or ``val`` is reported by both; one line is enough."""
    kept = [problem for problem in problems if not problem.startswith(("test.", "val."))]
    for key in ("test", "val"):
        twins = [problem for problem in problems if problem.startswith(f"{key}.")]
        if twins:
            found = twins[0].rpartition("found ")[2]
            kept.append(f"{key}: expected a share above 0 and below 1, or a list of image names, found {found}")
    return kept


def default_name(file_name: str) -> str:
    """A domain's name from the name of a folder or archive; what a name cannot hold becomes ``_``.

    Raises:
        UsageError: nothing usable is left.
    """
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "_", archive_stem(file_name)).strip("_-")[:64]
    # `natural` alone is the name of a role and of a folder of the workspace.
    name = "natural_images" if cleaned.lower() == "natural" else cleaned
    try:
        return valid_domain_name(name)
    except ValueError as exc:
        raise UsageError(
            f"{file_name!r} cannot name a domain: {exc}", hint=f"rename it, or write `name: ...` into its {CARD}"
        ) from exc


def kind_of(entry: Entry) -> str:
    """``folder``, ``archive`` or ``file``."""
    return "folder" if entry.is_folder else "archive" if is_archive(entry.name) else "file"
