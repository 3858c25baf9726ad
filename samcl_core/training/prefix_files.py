"""The disk layer of the prefix cache: one checked file an image, bounded, shared by processes. It never fails a run."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from samcl_core.errors import IntegrityError
from samcl_core.tensors import load_tensors, tensor_bytes

__all__ = ["PrefixFiles", "Row"]

Row = dict[str, Tensor]
"""One image's prefix, without the batch dimension: ``tokens``, ``embedding``, ``side.<name>``."""

_SUFFIX = ".safetensors"
_STALE_S = 3600.0
_PRUNED_FRAC = 0.9


class PrefixFiles:
    """Files ``<root>/<key>/<2 hex>/<image sha256>.safetensors``, the least recently used deleted first.

    Attributes:
        stopped: why nothing more is written in this run; empty while all is well.
    """

    def __init__(self, root: Path, key: str, max_bytes: int) -> None:
        self._root = root
        self._folder = root / key
        self._max_bytes = max_bytes
        self._used: set[Path] = set()
        self._total: int | None = None
        self.stopped = ""

    def path(self, image_sha256: str) -> Path:
        """Where the prefix of an image is kept."""
        return self._folder / image_sha256[:2] / f"{image_sha256}{_SUFFIX}"

    def has(self, image_sha256: str) -> bool:
        """True when there is a file; it is then kept until this run ends."""
        path = self.path(image_sha256)
        if not path.is_file():
            return False
        self._touch(path)
        return True

    def read(self, image_sha256: str, names: Sequence[str] | None = None) -> Row | None:
        """The stored tensors (or those named); ``None`` when there is no file or it is not as it was written.

        They are views of the mapped file, which stays mapped as long as they live: their checksums are compared here,
        once, and all processes share the memory. Whoever deletes or replaces the file does not change them.
        """
        path = self.path(image_sha256)
        try:
            tensors, sums = load_tensors(path)
            wanted = sorted(sums) if names is None else list(names)
            if names is None and set(tensors) != set(sums):
                return None
            row = {name: tensors[name] for name in wanted}
            if any(_checksum(row[name]) != sums[name] for name in wanted):
                return None
        except (OSError, IntegrityError, KeyError, TypeError):
            return None
        self._touch(path)
        return row

    def write(self, image_sha256: str, row: Row) -> bool:
        """Store a row; False, and ``stopped`` says why, when the disk or the limit does not allow it."""
        if self.stopped:
            return False
        path = self.path(image_sha256)
        data = tensor_bytes(row, {name: _checksum(tensor) for name, tensor in row.items()})
        try:
            if not self._make_room(len(data)):
                self.stopped = f"full ({self._max_bytes / 1e9:.3g} GB; raise cache.max_gb)"
                return False
            _put(path, data)
        except OSError as exc:
            self.stopped = f"cannot write below {self._root}: {exc.strerror or exc}"
            return False
        self._total = (self._total or 0) + len(data)
        self._used.add(path)
        return True

    def _touch(self, path: Path) -> None:
        """Mark as used: newest for every process, and never deleted by this one."""
        if path not in self._used:
            self._used.add(path)
            with contextlib.suppress(OSError):
                os.utime(path)

    def _make_room(self, num_bytes: int) -> bool:
        if self._total is not None and self._total + num_bytes <= self._max_bytes:
            return True
        files = self._scan()
        total = sum(size for _, size, _ in files)
        if total + num_bytes > self._max_bytes:
            for _, size, path in sorted(files):
                if total + num_bytes <= _PRUNED_FRAC * self._max_bytes:
                    break
                if path not in self._used:
                    path.unlink(missing_ok=True)
                    total -= size
        self._total = total
        return total + num_bytes <= self._max_bytes

    def _scan(self) -> list[tuple[float, int, Path]]:
        """Modification time, bytes and path of every stored file; leftovers of killed writers are deleted."""
        files = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _SUFFIX:
                    files.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".tmp" and time.time() - status.st_mtime > _STALE_S:
                    path.unlink()
        return files


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)


def _put(path: Path, data: bytes) -> None:
    """Write beside and rename. Not flushed to the disk: after a power cut the checksums tell what to compute again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
