"""Drops that were taken out of the inbox: kept until they are learnt or put aside, whatever is killed in between."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from samcl_core.config import InboxParams, Params
from samcl_core.domains.archives import ARCHIVE_SUFFIXES, Limits, archive_stem, is_archive, unpack
from samcl_core.domains.drops import card_of, default_name
from samcl_core.domains.formats import CARD, format_names, get_format, unwrap
from samcl_core.errors import DataError, SamclError, UnsafeFileError, UsageError
from samcl_core.files import write_atomic, write_json
from samcl_core.progress import Progress, silent
from samcl_core.stages.ingest import refuse_unusable, survey
from samcl_core.stages.places import Places
from tasks.dvc import check_source
from tasks.names import check_name

__all__ = [
    "BadImages",
    "Prepared",
    "Taken",
    "begun",
    "finish",
    "is_worked_on",
    "leftovers",
    "now_utc",
    "prepare",
    "read_taken",
    "reject",
    "taken_folder",
    "working_on",
    "write_taken",
]

_RECORD = ".drop.json"
_UNPACKED = ".unpacked"
_MAX_ROWS = 500


@dataclass(frozen=True)
class Taken:
    """One drop that was taken.

    Attributes:
        id: names it in the workspace; the same drop again has the same.
        name: of the file or folder as it was dropped.
        origin: where it was.
        digest: of its names, sizes and times.
        num_files: how many files it has.
        num_bytes: of all its files.
        time: when it was taken, UTC.
        path: where the data stays, when it was not moved here.
        domain: given by whoever announced it; ``None`` to look at its card and name. So are role, format and label.
        role: see ``domain``.
        format: see ``domain``.
        label: see ``domain``.
        tries: arrivals that were begun.
        error: what the last one failed with.
    """

    id: str
    name: str
    origin: str
    digest: str
    num_files: int = 0
    num_bytes: int = 0
    time: str = ""
    path: str | None = None
    domain: str | None = None
    role: str | None = None
    format: str | None = None
    label: str | None = None
    tries: int = 0
    error: str = ""

    def payload(self, root: Path) -> Path:
        """The file or folder that was dropped."""
        return taken_folder(root, self.id) / self.name if self.path is None else Path(self.path)


@dataclass(frozen=True)
class Prepared:
    """A drop that was looked at and can become a domain.

    Attributes:
        domain: its name.
        folder: its files.
        role: ``learn``, ``natural`` or ``unseen``.
        format: name of its layout.
        label: a text for people.
        notes: what its card says besides.
        num_train: usable images for training.
        num_test: usable images for the test.
        reasons: images that will be left out, with the reason.
    """

    domain: str
    folder: Path
    role: str
    format: str
    label: str | None
    notes: str | None
    num_train: int
    num_test: int
    reasons: Mapping[str, str] = field(default_factory=dict)


class BadImages(DataError):
    """Too many images of a drop cannot be used.

    Attributes:
        reasons: path to what is wrong, of all of them.
    """

    def __init__(self, message: str, reasons: Mapping[str, str], *, hint: str = "") -> None:
        self.reasons = dict(reasons)
        super().__init__(message, hint=hint)


def now_utc() -> str:
    """The time as people read it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def taken_folder(root: Path, drop: str) -> Path:
    """Where a taken drop lies."""
    return root / ".samcl" / "taken" / drop


def write_taken(root: Path, taken: Taken) -> None:
    """Write its record, atomically."""
    write_json(taken_folder(root, taken.id) / _RECORD, asdict(taken))


def read_taken(root: Path, drop: str) -> Taken:
    """The record of a taken drop.

    Raises:
        UsageError: there is none: it was learnt, rejected or never taken.
    """
    path = taken_folder(root, drop) / _RECORD
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Taken(**values)
    except (OSError, ValueError, TypeError) as exc:
        raise UsageError(f"no drop {drop!r} is waiting in {path.parent.parent}", hint="samcl inbox") from exc


def leftovers(root: Path) -> list[Taken]:
    """The drops that were taken and are not learnt yet, oldest first. Only while nobody else looks into the inbox."""
    found = []
    for folder in sorted((root / ".samcl" / "taken").glob("*/")):
        try:
            taken = read_taken(root, folder.name)
        except UsageError:
            if not any(folder.iterdir()):
                folder.rmdir()
            continue
        if os.path.lexists(taken.payload(root)):
            found.append(taken)
        elif taken.path is None and not is_worked_on(root, taken.id):
            # Killed before the drop was moved: it is in the inbox still.
            shutil.rmtree(folder)
    return sorted(found, key=lambda taken: (taken.time, taken.id))


@contextmanager
def working_on(root: Path, drop: str, timeout_s: float = 0.0) -> Iterator[bool]:
    """Whether this process may work on a taken drop; False while another one does. A killed one does not count.

    Args:
        root: the workspace.
        drop: id of the drop.
        timeout_s: how long to wait for another one; looks hold a drop for a moment only.
    """
    path = root / ".samcl" / "locks" / f"drop-{drop}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
        if not taken_folder(root, drop).exists():
            path.unlink(missing_ok=True)


def is_worked_on(root: Path, drop: str) -> bool:
    """Whether some process works on it now."""
    with working_on(root, drop) as is_free:
        return not is_free


def prepare(root: Path, params: Params, taken: Taken, progress: Progress = silent) -> Prepared:
    """Unpack a taken drop, read its card and look at every image. Nothing of the workspace's domains is touched.

    Raises:
        DataError: it is no folder or archive, damaged, in no known layout, or holds too many bad images.
        UnsafeFileError: the archive would write outside its folder, or is a bomb.
        UsageError: its name, role, format or card cannot be.
    """
    folder = _opened(root, params.inbox, taken, progress)
    card = card_of(folder)
    domain = taken.domain or card.name or default_name(taken.name)
    check_name(domain)
    _check_case(params, domain)
    known = params.domains.get(domain)
    role = taken.role or card.role or (known.role if known else "learn")
    if known is not None and known.role != role:
        raise UsageError(
            f"domain {domain!r} is declared with role {known.role!r}, the drop says {role!r}",
            hint=f"give the drop another name, or `samcl remove {domain}` first",
        )
    format = taken.format or card.format or (known.format if known else "auto")
    if format != "auto":
        get_format(format)
    check_source(root, folder, domain)
    found = survey(folder, params, format, known, progress, Places(root).measured(domain))
    try:
        refuse_unusable(found, domain, role, params.ingest.max_bad_frac)
    except DataError as exc:
        raise BadImages(exc.message, found.reasons, hint=exc.hint) from exc
    num_train, num_test = (sum(pair.split == split for pair in found.good) for split in ("train", "test"))
    label = taken.label or card.label
    return Prepared(domain, folder, role, format, label, card.notes, num_train, num_test, found.reasons)


def _opened(root: Path, options: InboxParams, taken: Taken, progress: Progress) -> Path:
    payload = taken.payload(root)
    if payload.is_dir():
        folder = payload
    elif is_archive(payload.name):
        folder = taken_folder(root, taken.id) / _UNPACKED
        if not folder.is_dir():
            limits = Limits(int(options.max_gb * 10**9), options.max_files, options.max_ratio)
            unpack(payload, folder, limits, progress)
    else:
        raise DataError(
            f"{taken.name} is neither a folder nor an archive",
            hint=f"drop a folder with images and masks, or one of {', '.join(ARCHIVE_SUFFIXES)}",
        )
    if taken.path is None:
        (folder / options.marker).unlink(missing_ok=True)
    if taken.path is None or folder != payload:
        return _without_wrapping(folder)
    return folder


def _without_wrapping(folder: Path) -> Path:
    """The folder that holds the data; the same data inside more folders is the same data. Its card goes with it."""
    inner = unwrap(folder)
    levels = [parent for parent in inner.parents if parent == folder or folder in parent.parents]
    card = next((level / CARD for level in levels if (level / CARD).is_file()), None)
    if card is not None and not (inner / CARD).exists():
        write_atomic(inner / CARD, card.read_bytes())
    return inner


def _check_case(params: Params, domain: str) -> None:
    other = next((name for name in params.domains if name != domain and name.lower() == domain.lower()), None)
    if other is not None:
        raise UsageError(
            f"domain {domain!r} and the known domain {other!r} differ only in case", hint="give the drop another name"
        )


def finish(root: Path, taken: Taken) -> None:
    """Forget a drop that was learnt: its data is in ``data/raw`` and in DVC's cache."""
    shutil.rmtree(taken_folder(root, taken.id), ignore_errors=True)


def reject(root: Path, params: Params, taken: Taken, error: SamclError) -> Path:
    """Move a drop to ``data/rejected/<name>-<time>`` with a ``report.md`` that says why; returns the folder.

    A drop whose data stays elsewhere leaves only the report there.
    """
    folder = taken_folder(root, taken.id)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    rejected = root / "data" / "rejected"
    rejected.mkdir(parents=True, exist_ok=True)
    stem = archive_stem(taken.name) or taken.name
    names = (f"{stem}-{stamp}" + (f"-{number}" if number else "") for number in range(1000))
    target = next(rejected / name for name in names if not (rejected / name).exists())
    shutil.rmtree(folder / _UNPACKED, ignore_errors=True)
    write_atomic(folder / _report_name(taken), _report(root, params, taken, error, target).encode())
    # One rename where both are on one disk: the drop is here or there, never lost.
    shutil.move(folder, target)
    return target


def _report_name(taken: Taken) -> str:
    return "report.md" if taken.name != "report.md" else "why.md"


def _report(root: Path, params: Params, taken: Taken, error: SamclError, target: Path) -> str:
    again = _again(root, params.inbox, taken, target)
    reasons = error.reasons if isinstance(error, BadImages) else {}
    rows = [f"| `{_cell(name)}` | {_cell(reason)} |" for name, reason in list(reasons.items())[:_MAX_ROWS]]
    if len(reasons) > _MAX_ROWS:
        rows.append(f"| and {len(reasons) - _MAX_ROWS} more | |")
    table = ["", "## Files that cannot be used", "", "| file | why |", "| --- | --- |", *rows] if rows else []
    tried = f"; it was tried {taken.tries} times" if taken.tries > 1 else ""
    lines = [
        f"# {taken.name} was not taken in",
        "",
        "| | |",
        "| --- | --- |",
        f"| dropped in | `{_cell(taken.origin)}` |",
        f"| taken | {taken.time} UTC |",
        f"| rejected | {now_utc()} UTC{tried} |",
        f"| found | {taken.num_files} files, {taken.num_bytes} bytes |",
        "",
        "## What is wrong",
        "",
        error.message,
        *table,
        "",
        "## What is expected",
        "",
        *_expected(error),
        "",
        "## What to do next",
        "",
        *([f"1. {error.hint}"] if error.hint else []),
        f"{2 if error.hint else 1}. Then hand it over again:",
        "",
        "```sh",
        *again,
        "```",
        "",
    ]
    return "\n".join(lines)


def _expected(error: SamclError) -> list[str]:
    if isinstance(error, UnsafeFileError):
        return ["An archive with plain files and folders only, with names inside it, of a sensible size when unpacked."]
    formats = [f"- `{name}`: {get_format(name).summary}" for name in format_names()]
    return [
        "A folder, or a zip or tar archive of one, with images and one mask for each, in one of these layouts:",
        "",
        *formats,
        "",
        "An optional `domain.yaml` in it may hold `name`, `role` (learn, natural or unseen), `format`, `label`,",
        "`test` (a share such as 0.2, or a list of image names) and `notes`.",
    ]


def _again(root: Path, options: InboxParams, taken: Taken, target: Path) -> list[str]:
    if taken.path is not None:
        return [f"samcl arrive {shlex.quote(taken.path)}" + (f" --domain {taken.domain}" if taken.domain else "")]
    here = (target / taken.name).relative_to(root).as_posix()
    if "://" in options.url:
        return [f"# put {shlex.quote(here)} back to {options.url.rstrip('/')}/{taken.name}"]
    place = f"{options.url.rstrip('/')}/{taken.name}"
    return [f"mv {shlex.quote(here)} {shlex.quote(place)}", f"touch {shlex.quote(place + '.done')}", "samcl inbox"]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def begun(root: Path, taken: Taken) -> Taken:
    """Its record with one more try, written."""
    more = replace(taken, tries=taken.tries + 1)
    write_taken(root, more)
    return more
