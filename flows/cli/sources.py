"""Which folders a command line means, what each is called, which role it has and when it comes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cli.output import StepProgress

if TYPE_CHECKING:
    from samcl_core.config import InboxParams

__all__ = ["Source", "domain_name", "opened", "resolve_sources"]

NONE = "none"
_NATURAL = re.compile(r"coco|natural.*", re.IGNORECASE)
_RANK = {"natural": 0, "unseen": 1, "learn": 2}
"""Domains that are never learnt come first: they are part of row 0 of the R matrix."""


@dataclass(frozen=True)
class Source:
    """One data set to take in.

    Attributes:
        path: its folder.
        domain: what it will be called.
        role: ``learn``, ``natural`` or ``unseen``.
        is_guessed: the role was taken from the folder's name.
    """

    path: Path
    domain: str
    role: str
    is_guessed: bool = False


def resolve_sources(
    paths: Sequence[Path],
    *,
    natural: Sequence[str] = (),
    unseen: Sequence[str] = (),
    order: Sequence[str] = (),
    declared: Mapping[str, str] | None = None,
) -> list[Source]:
    """The data sets that ``paths`` hold, in the order in which they are taken in.

    Args:
        paths: folders of one domain, or folders of such folders (also one level down, in ``data``).
        natural: names of natural images; ``none`` for no guess. Without it, a folder called COCO or natural... is one.
        unseen: names that are evaluated and never learnt.
        order: the learnt names in order; without it paths come as given, folders inside a path by name.
        declared: roles that the workspace knows already; only an explicit option says otherwise.

    Raises:
        UsageError: nothing is there, a name cannot be or comes twice, or an option names what is not there.
    """
    from samcl_core.errors import UsageError

    found = [(domain_name(folder.name), folder) for path in paths for folder in _domains_in(path)]
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"domain {twice[0]!r} comes twice", hint="samcl arrive FOLDER --domain OTHER_NAME")
    named = [name for name in natural if name != NONE]
    _check_known([*named, *unseen, *order], names)
    explicit = {**dict.fromkeys(unseen, "unseen"), **dict.fromkeys(named, "natural"), **dict.fromkeys(order, "learn")}
    guessed = {} if natural else {name: "natural" for name in names if _NATURAL.fullmatch(name)}
    known = {**guessed, **(declared or {}), **explicit}
    sources = [
        Source(folder, name, known.get(name, "learn"), name in guessed and name not in {**(declared or {}), **explicit})
        for name, folder in found
    ]
    learnt = [source.domain for source in sources if source.role == "learn"]
    if order and set(order) != set(learnt):
        left = sorted(set(learnt) - set(order)) or sorted(set(order) - set(learnt))
        raise UsageError(f"--order is {list(order)}, expected each of {sorted(learnt)} once (look at {left})")
    place = {name: number for number, name in enumerate(order or learnt)}
    return sorted(sources, key=lambda source: (_RANK[source.role], place.get(source.domain, 0)))


def domain_name(folder: str) -> str:
    """A domain's name from a folder's name; what a name cannot hold becomes ``_``.

    Raises:
        UsageError: nothing usable is left.
    """
    from samcl_core.domains.drops import default_name
    from samcl_core.errors import UsageError

    try:
        return default_name(folder)
    except UsageError as exc:
        raise UsageError(exc.message, hint="samcl arrive FOLDER --domain NAME") from exc


@contextmanager
def opened(path: Path, params: InboxParams, place: Path | None = None) -> Iterator[Path]:
    """The folder of a data set: ``path`` itself, or what an archive holds, unpacked for as long as the block lasts.

    Args:
        path: a folder or an archive.
        params: how large an archive may be.
        place: where to unpack; ``None`` for the system's temporary folder.

    Raises:
        UsageError: neither a folder nor an archive.
        DataError: the archive is damaged.
        UnsafeFileError: it would write outside of its folder, or is a bomb.
    """
    from samcl_core.domains.archives import ARCHIVE_SUFFIXES, Limits, is_archive, unpack
    from samcl_core.errors import UsageError

    if path.is_dir():
        yield path.resolve()
        return
    if not path.is_file() or not is_archive(path.name):
        raise UsageError(
            f"{path} is neither a folder nor an archive",
            hint=f"give the folder that holds the data set, or one of {', '.join(ARCHIVE_SUFFIXES)}",
        )
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=place) as folder:
        target = Path(folder) / "data"
        with StepProgress("unpacking") as progress:
            unpack(path, target, Limits(int(params.max_gb * 10**9), params.max_files, params.max_ratio), progress)
        yield target


def _check_known(wanted: Sequence[str], names: Sequence[str]) -> None:
    from samcl_core.errors import UsageError

    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UsageError(f"no folder is called {unknown[0]!r}, found {sorted(names)}", hint="samcl stream --help")


def _domains_in(path: Path) -> list[Path]:
    from samcl_core.errors import UsageError

    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", hint="give folders of images and masks")
    path = path.resolve()
    if _is_domain(path):
        return [path]
    for folder in (path, path / "data"):
        if inside := [inner for inner in _folders(folder) if _looks_wrapped(inner)]:
            return inside
    raise UsageError(
        f"{path} holds no data set: neither images with masks, nor folders of them",
        hint="samcl ingest FOLDER --dry-run  # says what is expected",
    )


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _is_domain(path: Path) -> bool:
    from samcl_core.domains.formats import format_names, get_format

    return any(get_format(name).matches(path) for name in format_names())


def _looks_wrapped(path: Path) -> bool:
    """A data set, or one inside folders that hold nothing else: archives often add such levels."""
    from samcl_core.domains.formats import unwrap

    return _is_domain(unwrap(path))
