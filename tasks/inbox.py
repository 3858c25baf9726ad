"""The inbox: a folder, or any address that fsspec knows. Each look takes the complete drops out of it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from samcl_core.config import InboxParams
from samcl_core.domains.archives import archive_stem, safe_name
from samcl_core.domains.drops import Drop, Entry, Look, drops_in, next_look
from samcl_core.errors import SamclError, UsageError
from samcl_core.files import digest_json, write_json
from tasks.taken import Taken, now_utc, read_taken, taken_folder, write_taken

__all__ = ["Inbox", "Seen", "announce", "fetch", "local_entry", "look", "looking"]

_STATE = "inbox.json"
_ID_CHARS = 12


@dataclass(frozen=True)
class Seen:
    """What a look found out about a drop.

    Attributes:
        name: of the drop.
        state: ``taken``, ``waiting`` or ``stuck`` (it cannot be read or moved; the next look tries again).
        why: for people.
        drop: id of a taken one.
    """

    name: str
    state: str
    why: str = ""
    drop: str | None = None


class Inbox:
    """Where data sets are dropped.

    Attributes:
        url: its address as it is set.
    """

    def __init__(self, root: Path, url: str) -> None:
        """Open it; a folder inside the workspace is made when it is missing.

        Raises:
            UsageError: there is no such folder, or no such kind of address.
        """
        self.url = url
        self._fs: Any = None
        self._base = url.rstrip("/")
        if "://" in url and not url.startswith("file://"):
            self._fs, self._base = _opened(url)
            self._base = self._base.rstrip("/")
            return
        folder = root / Path(url.removeprefix("file://")).expanduser()
        if folder.is_relative_to(root):
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise UsageError(f"the inbox {folder} is no folder", hint="make it, or correct inbox.url in params.yaml")
        self._base = str(folder)

    def entries(self) -> list[Entry]:
        """Everything in it but hidden names.

        Raises:
            SamclError: it cannot be read now.
        """
        try:
            found = _local_entries(Path(self._base)) if self._fs is None else self._remote_entries()
            return sorted(found, key=lambda entry: entry.name)
        except SamclError:
            raise
        except Exception as exc:  # every kind of storage has errors of its own
            raise SamclError(f"the inbox {self.url} cannot be read: {exc}", hint="samcl inbox, later") from exc

    def holds(self, path: Path) -> bool:
        """Whether a local path lies directly in it."""
        return self._fs is None and path.parent == Path(self._base)

    def take(self, drop: Drop, target: Path) -> bool:
        """Move a drop to ``target``: it is here or there at any moment. False when it changed meanwhile."""
        if drop.marker is not None:
            self._forget_marker(drop)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._fs is None:
            _move(Path(self._base) / drop.entry.name, target)
            return True
        return self._download(drop, target)

    def _forget_marker(self, drop: Drop) -> None:
        """Before the drop itself: a marker that stayed behind would make the next drop of the name complete at once."""
        assert drop.marker is not None
        beside = f"{self._base}/{drop.marker}"
        if self._fs is None:
            Path(beside).unlink(missing_ok=True)
        elif self._fs.exists(beside):
            self._fs.rm_file(beside)

    def _remote_entries(self) -> Iterator[Entry]:
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(self._base, detail=True)
        except FileNotFoundError:  # object stores have no empty folders
            return
        for info in listed:
            path = str(info["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if not name.startswith(".") and path.strip("/") != self._base.strip("/"):
                yield Entry(name, info["type"] == "directory", self._remote_files(path, info))

    def _remote_files(self, path: str, info: Mapping[str, Any]) -> dict[str, tuple[int, float | str]]:
        if info["type"] != "directory":
            return {"": _stamp(info)}
        found = self._fs.find(path, detail=True)
        cut = len(path.rstrip("/")) + 1
        return {str(name)[cut:]: _stamp(one) for name, one in found.items() if str(name)[cut:]}

    def _download(self, drop: Drop, target: Path) -> bool:
        entry = drop.entry
        source = f"{self._base}/{entry.name}"
        loading = target.with_name(f".{target.name}.loading")
        shutil.rmtree(loading, ignore_errors=True)
        loading.mkdir()
        fetch(self._fs, source, entry.name, entry.files, loading / entry.name)
        now = next((found for found in self._remote_entries() if found.name == entry.name), None)
        files = None if now is None else {name: stamp for name, stamp in now.files.items() if name != drop.marker}
        if files != dict(entry.files):
            shutil.rmtree(loading)
            return False
        (loading / entry.name).rename(target)
        loading.rmdir()
        self._fs.rm(source, recursive=entry.is_folder)
        return True


def fetch(fs: Any, source: str, name: str, files: Mapping[str, Any], target: Path) -> None:
    """Copy the named files of a remote file or folder to ``target``."""
    for file in files:
        inside = safe_name(source, file) if file else ""
        if file and not inside:
            continue
        path = target / inside if file else target
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{source}/{file}" if file else source, str(path))


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, base = url_to_fs(url)
    except ImportError as exc:
        raise UsageError(f"addresses like {url} need one more package: {exc}", hint=f"pip install; {exc}") from exc
    except ValueError as exc:
        raise UsageError(f"{url} is no address that can be opened: {exc}", hint="correct inbox.url") from exc
    return fs, str(base)


def _stamp(info: Mapping[str, Any]) -> tuple[int, float | str]:
    keys = ("mtime", "LastModified", "last_modified", "updated", "modified", "created", "ETag", "etag")
    found = next((info[key] for key in keys if info.get(key) is not None), "")
    if isinstance(found, datetime):
        found = found.timestamp()
    return int(info.get("size") or 0), float(found) if isinstance(found, int | float) else str(found)


def _local_entries(base: Path) -> Iterator[Entry]:
    for path in sorted(base.iterdir()):
        if not path.name.startswith("."):
            yield local_entry(path)


def local_entry(path: Path) -> Entry:
    """The entry of a file or folder of this machine, without files that vanish meanwhile or cannot be reached."""
    if not path.is_dir():
        return Entry(path.name, False, _local_stamp(path, ""))
    files: dict[str, tuple[int, float | str]] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            files |= _local_stamp(file, file.relative_to(path).as_posix())
    return Entry(path.name, True, files)


def _local_stamp(path: Path, name: str) -> dict[str, tuple[int, float | str]]:
    try:
        status = path.lstat()
    except OSError:
        return {}
    return {name: (status.st_size, float(status.st_mtime))}


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise SamclError(f"{source} cannot be taken: {exc.strerror}", hint=f"chmod -R u+rwX {source}") from exc
        copy = target.with_name(f".{target.name}.loading")
        shutil.rmtree(copy, ignore_errors=True)
        copy.unlink(missing_ok=True)
        shutil.copytree(source, copy, symlinks=True) if source.is_dir() else shutil.copy2(source, copy)
        copy.rename(target)
        shutil.rmtree(source) if source.is_dir() and not source.is_symlink() else source.unlink()


@contextmanager
def looking(root: Path) -> Iterator[bool]:
    """Whether this process may look into the inbox; False while another one looks."""
    path = root / ".samcl" / "locks" / "inbox.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def look(root: Path, options: InboxParams, now: float | None = None) -> list[Seen]:
    """Look into the inbox once and take what is complete. Inside ``looking`` only.

    A drop that cannot be taken holds up no other.

    Args:
        root: the workspace.
        options: section ``inbox`` of the settings.
        now: time in seconds; the clock's when ``None``. Looks closer than half the interval count as one.

    Raises:
        UsageError: there is no such inbox.
        SamclError: it cannot be read now.
    """
    now = time.time() if now is None else now
    inbox = Inbox(root, options.url)
    path = root / ".samcl" / _STATE
    before, after, seen = _read_state(path), {}, []
    for drop in drops_in(inbox.entries(), options.marker):
        name = drop.entry.name
        found = next_look(before.get(name), drop.entry.digest, now, options.interval_s / 2)
        after[name] = found
        if not drop.is_complete(found, options.settle_looks):
            seen.append(Seen(name, "waiting", _why(drop, found, options, inbox)))
            continue
        try:
            seen.append(_take(root, inbox, drop))
        except (SamclError, OSError) as exc:
            seen.append(Seen(name, "stuck", exc.message if isinstance(exc, SamclError) else str(exc)))
    write_json(path, {"looks": {name: asdict(one) for name, one in after.items()}})
    return seen


def _why(drop: Drop, found: Look, options: InboxParams, inbox: Inbox) -> str:
    if drop.waits_for:
        return drop.waits_for
    mark = f"{inbox.url.rstrip('/')}/{drop.entry.name}.done"
    return f"unchanged in {found.num} of {options.settle_looks} looks; a file {mark} says that it is complete"


def _take(root: Path, inbox: Inbox, drop: Drop) -> Seen:
    entry = drop.entry
    origin = f"{inbox.url.rstrip('/')}/{entry.name}"
    taken = _record(entry, origin, entry.digest)
    if taken_folder(root, taken.id).exists():
        return Seen(entry.name, "waiting", "the same drop was taken before and is being learnt")
    write_taken(root, taken)
    try:
        is_taken = inbox.take(drop, taken.payload(root))
    except BaseException:
        if not os.path.lexists(taken.payload(root)):
            shutil.rmtree(taken_folder(root, taken.id), ignore_errors=True)
        raise
    if not is_taken:
        shutil.rmtree(taken_folder(root, taken.id))
        return Seen(entry.name, "waiting", "it changed while it was fetched")
    return Seen(entry.name, "taken", drop=taken.id)


def _record(entry: Entry, origin: str, digest: str) -> Taken:
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", archive_stem(entry.name))[:64]
    return Taken(
        id=f"{stem}-{digest[:_ID_CHARS]}",
        name=entry.name,
        origin=origin,
        digest=digest,
        num_files=len(entry.files),
        num_bytes=entry.num_bytes,
        time=now_utc(),
    )


def _read_state(path: Path) -> dict[str, Look]:
    """What earlier looks found; a file that cannot be read costs one more look."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["looks"]
        return {str(name): Look(str(one["digest"]), int(one["num"]), float(one["at"])) for name, one in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def announce(root: Path, options: InboxParams, path: str, **given: str | None) -> Taken:
    """Take a drop that somebody says is complete: a path of this machine or an address that fsspec knows.

    One in the inbox is moved out of it; data anywhere else stays where it is.

    Args:
        root: the workspace.
        options: section ``inbox`` of the settings.
        path: a folder or archive; a relative one is looked for in the workspace.
        given: ``domain``, ``role``, ``format``, ``label``; they go before the drop's own card.

    Raises:
        UsageError: nothing is there.
    """
    given = {key: value or None for key, value in given.items()}
    if "://" in path and not path.startswith("file://"):
        return _announced_remote(root, path, given)
    place = root / Path(path.removeprefix("file://")).expanduser()
    if not place.exists():
        raise UsageError(f"{place} does not exist", hint="give the folder or archive that holds the data set")
    entry = local_entry(place)
    inbox = Inbox(root, options.url) if "://" not in options.url else None
    if inbox is not None and inbox.holds(place):
        with looking(root) as is_free:
            seen = _take(root, inbox, Drop(entry, None)) if is_free else None
        if seen is None or seen.drop is None:
            raise UsageError(f"{place} is being taken already", hint="samcl inbox")
        taken = Taken(**{**asdict(read_taken(root, seen.drop)), **given})
    else:
        digest = digest_json([str(place), entry.digest, given])
        taken = Taken(**{**asdict(_record(entry, str(place), digest)), **given, "path": str(place)})
        if taken_folder(root, taken.id).exists():
            return read_taken(root, taken.id)
    write_taken(root, taken)
    return taken


def _announced_remote(root: Path, url: str, given: Mapping[str, str | None]) -> Taken:
    fs, path = _opened(url.rstrip("/"))
    try:
        info = fs.info(path)
        found = fs.find(path, detail=True) if info["type"] == "directory" else {}
    except FileNotFoundError as exc:
        raise UsageError(f"{url} does not exist", hint="give the folder or archive that holds the data set") from exc
    cut = len(path.rstrip("/")) + 1
    files = {str(name)[cut:]: _stamp(one) for name, one in found.items()} or {"": _stamp(info)}
    entry = Entry(path.rstrip("/").rpartition("/")[2], bool(found), files)
    taken = Taken(**{**asdict(_record(entry, url, digest_json([url, entry.digest, dict(given)]))), **given})
    target = taken.payload(root)
    if not target.exists():
        loading = target.with_name(f".{target.name}.loading")
        shutil.rmtree(loading, ignore_errors=True)
        fetch(fs, path, entry.name, entry.files, loading / entry.name)
        (loading / entry.name).rename(target)
        loading.rmdir()
    write_taken(root, taken)
    return taken
