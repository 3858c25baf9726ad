"""Frozen prefixes, computed once per image ever: from memory, else from disk, else from the backbone."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Prefix, PrefixPlan
from samcl_core.domains.images import load_image
from samcl_core.domains.layout import Sample
from samcl_core.errors import DataError
from samcl_core.files import digest_json, sha256_file
from samcl_core.progress import Progress, silent
from samcl_core.training.prefix_files import PrefixFiles, Row

__all__ = ["PrefixCache", "cache_key"]

_LAYOUT = 1
_CUDA_BATCH = 4
_CUDA_WORKERS = 4
_MAX_MAPPED = 16_384  # mapped files; Linux allows a process 65,530 maps of any kind
_SIDE = "side."
_DEFAULT_PLAN = PrefixPlan()


def cache_key(backbone: Backbone, dtype: str, plan: PrefixPlan = _DEFAULT_PLAN) -> str:
    """Digest of everything a stored prefix depends on besides the image."""
    values: dict[str, Any] = {
        "layout": _LAYOUT,
        "backbone": backbone.sha256,
        "preprocessing": backbone.preprocessing,
        "image_size": backbone.image_size,
        "split": backbone.site.blocks[0],
        "dtype": dtype,
        "device": backbone.device.type,
    }
    if plan != _DEFAULT_PLAN:  # prefixes of the default plan are found where they were before there were plans
        values |= {"split": plan.split, "side": list(plan.side)}
    return digest_json(values)


class PrefixCache:
    """Prefixes and selector embeddings of samples for one backbone. Safe to call from several threads and processes.

    On the CPU each image goes through the backbone alone, so that its bytes depend on nothing but the image.

    Attributes:
        backbone: whose prefixes these are.
        dtype: what is kept; ``float16`` halves the space, and everything returned is float32 again.
        plan: what the prefixes hold.
    """

    def __init__(
        self,
        root: Path | None,
        backbone: Backbone,
        *,
        max_gb: float = 20.0,
        dtype: Literal["float32", "float16"] = "float32",
        memory_gb: float = 4.0,
        batch_size: int | None = None,
        plan: PrefixPlan = _DEFAULT_PLAN,
    ) -> None:
        """Open the cache; nothing is read or written yet.

        Args:
            root: folder of the files, shared by backbones and processes; ``None`` keeps prefixes in memory only.
            backbone: computes what is missing, on its device.
            max_gb: limit of all files below ``root`` in 1e9 bytes; the least recently used are deleted first, those
                used in this run never.
            dtype: dtype of stored tokens and side features; embeddings stay float32.
            memory_gb: limit of the computed prefixes kept in memory, in 1e9 bytes. Those that were stored before stay
                in their mapped files; the system keeps of them in memory what it has room for, once for all processes.
            batch_size: images in the backbone at once; ``None`` is 1 on the CPU and 4 on a GPU.
            plan: what the prefixes hold, ``Adapter.plan`` of the modules that will use them.
        """
        self.backbone = backbone
        self.dtype = dtype
        self.plan = plan
        key = cache_key(backbone, dtype, plan)[:16]
        self._files = None if root is None else PrefixFiles(root, key, int(max_gb * 1e9))
        self._memory: OrderedDict[str, Row] = OrderedDict()
        self._memory_bytes = 0
        self._mapped: OrderedDict[str, Row] = OrderedDict()
        self._max_memory_bytes = int(memory_gb * 1e9)
        self._working: frozenset[str] = frozenset()
        self._batch_size = batch_size or (1 if backbone.device.type == "cpu" else _CUDA_BATCH)
        self._is_reported = False
        self._lock = threading.RLock()

    @property
    def has_files(self) -> bool:
        """Whether prefixes are kept on disk, where other processes find them."""
        return self._files is not None

    def get(self, samples: Sequence[Sample], progress: Progress = silent, *, pinned: bool = False) -> Prefix:
        """The prefixes of a batch on the CPU, in order, float32; what is missing is computed and stored.

        Args:
            samples: at least one.
            progress: called after each image that had to be computed.
            pinned: page-locked memory and the stored dtype, for a copy to a GPU that is widened there.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        with self._lock:
            rows, missing = self._recall(samples)
            rows.update(self._compute(missing, progress))
        return _stack([rows[sample.image_sha256] for sample in samples], self.plan, pinned)

    def warm(self, samples: Sequence[Sample], progress: Progress = silent) -> None:
        """Compute and store what is missing, and keep these samples in memory before all others from now on.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        with self._lock:
            self._working = frozenset(sample.image_sha256 for sample in samples)
            for key, _ in self._compute([s for s in _distinct(samples) if not self._has(s.image_sha256)], progress):
                if not self._has(key):  # neither disk nor memory takes more: the rest is computed when it is needed
                    return

    def embeddings(self, samples: Sequence[Sample], progress: Progress = silent) -> Tensor:
        """(n, C) float32 selector embeddings in order; of stored prefixes nothing else is read.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        if not samples:
            return torch.zeros(0, self.backbone.site.dim)
        with self._lock:
            rows, missing = self._recall(samples, ("embedding",))
            found = {key: row["embedding"] for key, row in rows.items()}
            for key, row in self._compute(missing, progress):
                found[key] = row["embedding"]
        return torch.stack([found[sample.image_sha256] for sample in samples])

    def pixels(self, samples: Sequence[Sample]) -> Tensor:
        """(n, 3, S, S) float32 preprocessed images in order, read anew.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        return torch.stack([self._pixels(sample) for sample in samples])

    def _has(self, key: str) -> bool:
        return key in self._memory or key in self._mapped or (self._files is not None and self._files.has(key))

    def _recall(
        self, samples: Sequence[Sample], names: Sequence[str] | None = None
    ) -> tuple[dict[str, Row], list[Sample]]:
        """Rows that are in memory or on disk, and the distinct samples that are not."""
        rows: dict[str, Row] = {}
        missing = []
        for sample in _distinct(samples):
            key = sample.image_sha256
            row = self._memory.get(key)
            if row is not None:
                self._memory.move_to_end(key)
            elif self._files is not None:
                row = self._read(self._files, key, names)
            if row is None:
                missing.append(sample)
            else:
                rows[key] = row
        return rows, missing

    def _read(self, files: PrefixFiles, key: str, names: Sequence[str] | None) -> Row | None:
        """A stored row; a whole one stays mapped, the least recently used ones are let go."""
        row = self._mapped.pop(key, None) or files.read(key, names)
        if row is not None and (names is None or set(row) > set(names)):
            self._mapped[key] = row
            if len(self._mapped) > _MAX_MAPPED:
                self._mapped.popitem(last=False)
        return row

    def _compute(self, samples: Sequence[Sample], progress: Progress) -> Iterator[tuple[str, Row]]:
        images = self._loaded(samples)
        for start in range(0, len(samples), self._batch_size):
            batch = samples[start : start + self._batch_size]
            prefix = self._prefix(torch.stack([next(images) for _ in batch]))
            rows = {sample.image_sha256: _row(prefix, position, self.dtype) for position, sample in enumerate(batch)}
            for key, row in rows.items():
                self._keep(key, row)
            progress(self._what(), start + len(batch), len(samples))
            yield from rows.items()

    def _what(self) -> str:
        """What is going on; the first time after the disk layer gave up, also why."""
        if self._files is None or not self._files.stopped or self._is_reported:
            return "computing frozen features"
        self._is_reported = True
        return f"computing frozen features; the prefix cache takes no more: {self._files.stopped}"

    def _prefix(self, pixels: Tensor) -> Prefix:
        device = self.backbone.device
        try:
            return self.backbone.prefix(pixels.to(device), self.plan).to("cpu")
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            return Prefix.cat([self.backbone.prefix(one[None].to(device), self.plan).to("cpu") for one in pixels])

    def _loaded(self, samples: Sequence[Sample]) -> Iterator[Tensor]:
        """Preprocessed images in order; beside a GPU they are decoded ahead by threads."""
        if self._batch_size == 1:
            yield from map(self._pixels, samples)
            return
        with ThreadPoolExecutor(_CUDA_WORKERS) as pool:
            ahead: deque[Future[Tensor]] = deque()
            for sample in samples:
                ahead.append(pool.submit(self._pixels, sample))
                if len(ahead) > 2 * self._batch_size:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _pixels(self, sample: Sample) -> Tensor:
        # A file is stored under the digest of the manifest and shared by every later run: the image must be that one.
        found = sha256_file(sample.image) if sample.image.is_file() else "none (no such file)"
        if found != sample.image_sha256:
            raise DataError(
                f"{sample.image} changed since it was ingested: sha256 {found}, expected {sample.image_sha256}",
                hint="ingest the domain again: dvc repro",
            )
        return self.backbone.preprocess(load_image(sample.image))

    def _keep(self, key: str, row: Row) -> None:
        if self._files is not None:
            self._files.write(key, row)
        self._admit(key, row)

    def _admit(self, key: str, row: Row) -> None:
        """Keep a row in memory if it fits; rows outside of the working set make room, oldest first."""
        size = _num_bytes(row)
        if key in self._memory or size > self._max_memory_bytes:
            return
        for other in list(self._memory):
            if self._memory_bytes + size <= self._max_memory_bytes:
                break
            if other not in self._working:
                self._memory_bytes -= _num_bytes(self._memory.pop(other))
        if self._memory_bytes + size <= self._max_memory_bytes:
            self._memory[key] = row
            self._memory_bytes += size


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    return list({sample.image_sha256: sample for sample in samples}.values())


def _num_bytes(row: Row) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row.values())


def _row(prefix: Prefix, position: int, dtype: str) -> Row:
    wide = {"tokens": prefix.tokens[position], **{_SIDE + name: side[position] for name, side in prefix.side.items()}}
    return {name: _narrow(tensor, dtype) for name, tensor in wide.items()} | {
        "embedding": prefix.embedding[position].float().clone()
    }


def _narrow(tensor: Tensor, dtype: str) -> Tensor:
    """A copy in the stored dtype; float32 where float16 would overflow."""
    if dtype == "float16":
        half = tensor.to(torch.float16)
        if bool(torch.isfinite(half).all()):
            return half
    return tensor.float().clone()


def _stack(rows: Sequence[Row], plan: PrefixPlan, pinned: bool) -> Prefix:
    batch = {name: _joined([row[name] for row in rows], pinned) for name in rows[0]}
    side = {name.removeprefix(_SIDE): tensor for name, tensor in batch.items() if name.startswith(_SIDE)}
    return Prefix(batch["tokens"], batch["embedding"], side, plan.split)


def _joined(parts: Sequence[Tensor], pinned: bool) -> Tensor:
    """A batch, written in one pass over its parts, which may be pages of mapped files."""
    is_narrow = pinned and all(part.dtype == torch.float16 for part in parts)
    dtype = torch.float16 if is_narrow else torch.float32
    batch = torch.empty(len(parts), *parts[0].shape, dtype=dtype, pin_memory=pinned)
    for row, part in zip(batch, parts, strict=True):
        row.copy_(part)
    return batch
