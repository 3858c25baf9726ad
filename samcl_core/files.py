"""Files that are whole or absent: digests, atomic writes and folder replacement."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samcl_core.errors import SamclError

__all__ = [
    "canonical_json",
    "copy_file",
    "digest_files",
    "digest_json",
    "read_bytes",
    "replace_folder",
    "sha256_file",
    "staged_folder",
    "write_atomic",
    "write_json",
]

_CHUNK_BYTES = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = ".old."
_NO_SYSTEM_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
_DISK_PROBLEMS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """``path.read_bytes()`` with half of its system calls: of a small file they are what takes the time."""
    handle = os.open(os.fspath(path), os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        data = os.read(handle, status.st_size + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(handle)
    return data if data and len(data) == status.st_size else path.read_bytes()


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file to one that there is not yet; ``shutil`` takes several times as long for a small one.

    Raises:
        OSError: the source cannot be read, or there is a target already, or no room for it.
    """
    read = os.open(os.fspath(source), os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        write = os.open(os.fspath(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if not _copied_by_the_system(read, write):
                while data := os.read(read, _CHUNK_BYTES):
                    while data:
                        data = data[os.write(write, data) :]
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copied_by_the_system(read: int, write: int) -> bool:
    """Whether there was a byte to copy from one open file to another and the system did; ``False``: nothing is done."""
    if not hasattr(os, "copy_file_range"):
        return False
    copied = 0
    try:
        while count := os.copy_file_range(read, write, _CHUNK_BYTES):
            copied += count
    except OSError as exc:
        # Between file systems, or for one that cannot; nothing was copied then.
        if copied or exc.errno not in _NO_SYSTEM_COPY:
            raise
    return copied > 0


def canonical_json(value: Any) -> str:
    """JSON text that is the same for the same value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """Hex sha256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_files(folder: Path) -> dict[str, str]:
    """Relative POSIX path to sha256 of every file below ``folder``, sorted. DVC's ``.gitignore`` does not count."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, flush it to the disk and rename: readers see the old file or the new one, whole.

    Raises:
        SamclError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as exc:
        _discard(name)
        raise _cannot_write(path, exc) from exc
    except BaseException:
        _discard(name)
        raise


def _discard(name: str | None) -> None:
    if name is not None:
        Path(name).unlink(missing_ok=True)


def _cannot_write(path: Path, exc: OSError) -> SamclError:
    return SamclError(
        f"cannot write {path}: {exc.strerror or exc}",
        hint="free disk space or permissions, then run the same command again",
    )


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON, atomically. NaN is refused (ValueError): a missing number is ``null``."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def replace_folder(source: Path, target: Path) -> None:
    """Put folder ``source`` in the place of ``target`` (same file system) and delete what stood there.

    Where the system can, both names are exchanged in one step, so that ``target`` is never absent. Elsewhere it is
    absent for a moment; if the process dies in it, the next ``staged_folder`` puts the old folder back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        source.rename(target)
        return
    if _exchange(source, target):
        shutil.rmtree(source)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}{_OLD}"))
    target.rename(old / target.name)
    source.rename(target)
    shutil.rmtree(old)


def _exchange(source: Path, target: Path) -> bool:
    """Exchange two names atomically; False where the kernel or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well and vanishes when it fails.

    What killed runs left beside ``target`` is removed first; one process at a time may stage the same target.

    Raises:
        SamclError: the disk is full or the folder cannot be written; ``target`` is as it was. Other errors of the
            block, a missing input for instance, pass unchanged.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        staging.chmod(0o755)
    except OSError as exc:
        raise _cannot_write(target, exc) from exc
    try:
        yield staging
    except OSError as exc:
        shutil.rmtree(staging, ignore_errors=True)
        if exc.errno in _DISK_PROBLEMS or str(staging) in str(exc.filename):
            raise _cannot_write(target, exc) from exc
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    try:
        replace_folder(staging, target)
    except OSError as exc:
        shutil.rmtree(staging, ignore_errors=True)
        raise _cannot_write(target, exc) from exc


def _clean_up(target: Path) -> None:
    name = glob.escape(target.name)
    for old in target.parent.glob(f".{name}{_OLD}*"):
        if not target.exists() and (old / target.name).exists():
            (old / target.name).rename(target)
        shutil.rmtree(old, ignore_errors=True)
    for leftover in target.parent.glob(f".{name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
