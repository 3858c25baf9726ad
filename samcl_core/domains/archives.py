"""Archives from strangers, unpacked without harm: nothing outside the folder, no links, no bombs, all or nothing."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from samcl_core.errors import DataError, UnsafeFileError
from samcl_core.files import staged_folder
from samcl_core.progress import Progress, silent

__all__ = ["ARCHIVE_SUFFIXES", "Limits", "archive_stem", "is_archive", "safe_name", "unpack"]

ARCHIVE_SUFFIXES = (
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tar",
    ".zip",
)
"""Names of archives that are understood, whatever the case."""

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 24
_MAX_TAIL_BYTES = 1 << 24
_MAX_PART_BYTES = 240
_MAX_NAME_BYTES = 1024
_BLOCK_BYTES = 512
_ENCRYPTED = 0x1
_JUNK = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    struct.error,
    NotImplementedError,
    ValueError,
)
_AGAIN = "make the archive again from plain files and folders, or hand over the folder itself"


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold.

    Attributes:
        max_bytes: of all files together, unpacked.
        max_files: how many entries.
        max_ratio: unpacked bytes for each byte of the archive, where there are more than ``free_bytes``.
        free_bytes: up to here any ratio is harmless: plain masks are small.
    """

    max_bytes: int = 100 * 10**9
    max_files: int = 1_000_000
    max_ratio: float = 200.0
    free_bytes: int = 64 << 20


@dataclass(frozen=True)
class _Member:
    """One file of an archive: its name inside the folder, the size it claims, and how it is opened."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes] | None]]


def is_archive(name: str) -> bool:
    """Whether a file of this name is taken for an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_stem(name: str) -> str:
    """The name without the suffix of an archive: ``Kvasir.tar.gz`` is ``Kvasir``."""
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def unpack(archive: Path, target: Path, limits: Limits | None = None, progress: Progress = silent) -> int:
    """Unpack a zip or tar archive into the new folder ``target``; what stood there is replaced.

    Names, kinds and sizes are looked at before a byte of a file is written. Files of desktop systems are left out.

    Args:
        archive: the file; what it is, its name says.
        target: made when everything was unpacked; absent, or as it was, after any error.
        limits: how much it may hold.
        progress: told bytes read.

    Returns:
        How many files were written.

    Raises:
        UnsafeFileError: a name leads out of the folder, an entry is no plain file or folder, or it is a bomb.
        DataError: it is damaged, cut off, encrypted, empty or of another kind than its name says.
        SamclError: the disk is full.
    """
    limits = limits or Limits()
    budget = _Budget(archive, limits)
    opened = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    try:
        with staged_folder(target) as staging:
            with opened(archive, budget) as members:
                num_files = _write(members, staging, budget, progress)
            if not num_files:
                raise DataError(f"{archive.name} holds no file", hint=_AGAIN)
    except _DAMAGE as exc:
        text = " ".join(str(exc).split()) or type(exc).__name__
        raise DataError(
            f"{archive.name} cannot be unpacked: it is damaged, cut off or no such archive ({text})",
            hint="copy or make the archive again",
        ) from exc
    return num_files


class _Budget:
    """Counts entries and bytes, as claimed and as they really come."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive = archive
        self.limits = limits
        self.packed = max(1, archive.stat().st_size)
        self.num_entries = 0
        self.num_bytes = 0

    def entry(self) -> None:
        self.num_entries += 1
        if self.num_entries > self.limits.max_files:
            self._refuse(f"more than {self.limits.max_files} entries")

    def check(self, more_bytes: int) -> None:
        """Refuse when ``more_bytes`` after those that came are too many."""
        total = self.num_bytes + more_bytes
        if total > self.limits.max_bytes:
            self._refuse(f"at least {total} bytes unpacked, expected at most {self.limits.max_bytes}")
        if total > self.limits.free_bytes and total > self.limits.max_ratio * self.packed:
            self._refuse(
                f"{total / self.packed:.0f} bytes or more for each of its {self.packed} bytes,"
                f" expected at most {self.limits.max_ratio:g}"
            )

    def spend(self, num_bytes: int) -> None:
        self.check(num_bytes)
        self.num_bytes += num_bytes

    def _refuse(self, found: str) -> None:
        raise UnsafeFileError(
            f"{self.archive.name} looks like an archive bomb: {found}",
            hint="hand over the folder itself, or raise inbox.max_gb, max_files or max_ratio in params.yaml",
        )


def _write(members: Iterator[_Member], staging: Path, budget: _Budget, progress: Progress) -> int:
    seen: set[str] = set()
    folders: set[str] = set()
    for member in members:
        parents = {parent.as_posix() for parent in PurePosixPath(member.name).parents} - {"."}
        if member.name in seen or member.name in folders or parents & seen:
            raise UnsafeFileError(f"{budget.archive.name} holds {member.name!r} twice", hint=_AGAIN)
        seen.add(member.name)
        folders |= parents
        path = staging / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with member.open() as source, path.open("xb") as copy:
            while source is not None and (chunk := source.read(_CHUNK_BYTES)):
                budget.spend(len(chunk))
                copy.write(chunk)
                written += len(chunk)
        if written != member.size:
            raise DataError(
                f"{budget.archive.name}: {member.name} has {written} bytes, its entry says {member.size}", hint=_AGAIN
            )
        progress("unpacking", len(seen), 0)
    return len(seen)


def safe_name(source: str, name: str) -> str:
    """The name of an entry as a path below a folder; empty for what is left out.

    Args:
        source: the archive or address that holds it, for the message.
        name: as found there.

    Raises:
        UnsafeFileError: it leads out of the folder, or no file system holds it.
    """
    # Windows' own tools wrote backslashes for a long time.
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    is_absolute = plain.startswith("/") or (len(plain) > 1 and plain[1] == ":" and plain[0].isalpha())
    if is_absolute or ".." in parts:
        raise UnsafeFileError(f"{source}: entry {name!r} leads out of the folder", hint=_AGAIN)
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError:
        raise UnsafeFileError(f"{source}: the name of entry {name!r} is no UTF-8", hint=_AGAIN) from None
    is_too_long = max(sizes, default=0) > _MAX_PART_BYTES or sum(sizes) + len(sizes) > _MAX_NAME_BYTES
    if is_too_long or any(ord(letter) < 32 for letter in plain):
        raise UnsafeFileError(f"{source}: entry {name[:80]!r} has a name that no file can have", hint=_AGAIN)
    return "" if _JUNK & set(parts) else "/".join(parts)


@contextmanager
def _zip_members(archive: Path, budget: _Budget) -> Iterator[Iterator[_Member]]:
    with zipfile.ZipFile(archive) as opened:
        files = []
        for info in opened.infolist():
            budget.entry()
            name = safe_name(archive.name, info.filename)
            _check_zip_entry(archive, info)
            if name and not info.is_dir():
                files.append((name, info))
        budget.check(sum(info.file_size for _, info in files))
        yield (_Member(name, info.file_size, lambda info=info: opened.open(info)) for name, info in files)  # type: ignore[misc]


def _check_zip_entry(archive: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{archive.name} is encrypted ({info.filename})", hint="make the archive without a password")
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a link" if stat.S_ISLNK(mode) else "no plain file"
        raise UnsafeFileError(f"{archive.name}: entry {info.filename!r} is {what}", hint=_AGAIN)


@contextmanager
def _tar_members(archive: Path, budget: _Budget) -> Iterator[Iterator[_Member]]:
    with _uncompressed(archive) as raw:
        stream = _Careful(raw, budget)
        with tarfile.open(fileobj=stream, mode="r:") as opened:  # type: ignore[call-overload]
            yield _each_tar_member(archive, opened, stream, budget)


def _each_tar_member(archive: Path, opened: tarfile.TarFile, stream: _Careful, budget: _Budget) -> Iterator[_Member]:
    while (info := opened.next()) is not None:
        budget.entry()
        name = safe_name(archive.name, info.name)
        if info.issym() or info.islnk():
            raise UnsafeFileError(f"{archive.name}: entry {info.name!r} is a link, to {info.linkname!r}", hint=_AGAIN)
        if info.issparse() or not (info.isfile() or info.isdir()):
            raise UnsafeFileError(f"{archive.name}: entry {info.name!r} is no plain file or folder", hint=_AGAIN)
        if info.isfile() and not name:
            budget.spend(info.size)
        elif info.isfile():
            budget.check(info.size)
            yield _Member(name, info.size, lambda info=info: _open_tar(opened, info))  # type: ignore[misc]
        # The reader keeps every entry it has seen.
        opened.members.clear()  # type: ignore[attr-defined]
    _check_end(archive, opened.offset, stream)


@contextmanager
def _open_tar(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[IO[bytes] | None]:
    source = opened.extractfile(info)
    try:
        yield source
    finally:
        if source is not None:
            source.close()


def _check_end(archive: Path, offset: int, stream: _Careful) -> None:
    """A tar file ends with a block of zeros; one that was cut off between two files looks whole without this."""
    stream.seek(offset)
    if stream.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
        raise DataError(f"{archive.name} is cut off or damaged: its end mark is missing", hint="copy it again")
    for _ in range(_MAX_TAIL_BYTES // _CHUNK_BYTES):  # a compressed file has its checksum at the very end
        if not stream.read(_CHUNK_BYTES):
            return


class _Careful:
    """What ``tarfile`` reads from: no single read is large, so that no header can fill the memory."""

    def __init__(self, raw: Any, budget: _Budget) -> None:
        self._raw = raw
        self._budget = budget

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAX_HEADER_BYTES:
            raise UnsafeFileError(f"{self._budget.archive.name} has a header of {size} bytes", hint=_AGAIN)
        data: bytes = self._raw.read(size)
        return data

    def seek(self, offset: int) -> int:
        position: int = self._raw.seek(offset)
        return position

    def tell(self) -> int:
        position: int = self._raw.tell()
        return position


@contextmanager
def _uncompressed(archive: Path) -> Iterator[Any]:
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    with archive.open("rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        opener = next((opener for magic, opener in openers.items() if head.startswith(magic)), None)
        if opener is None:
            yield stream
            return
        with opener(stream, "rb") as raw:
            yield raw
