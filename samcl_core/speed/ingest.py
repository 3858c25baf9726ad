"""Taking data in, against what any way of taking it in must do: read, hash and decode every file."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from samcl_core.config import Params, parse_params
from samcl_core.domains.workers import num_workers
from samcl_core.progress import Progress, silent
from samcl_core.speed.cases import Arm
from samcl_core.stages import ingest

__all__ = ["IngestCase", "ReingestCase"]

_SIDE_PX = 512
_DOMAIN = "Pictures"
_PARAMS: Params = parse_params({"domains": {_DOMAIN: {"role": "learn"}}, "modules": {_DOMAIN: {}}})


class IngestCase:
    """New data: every file is read, hashed, decoded, checked and compared, and the domain is written.

    The size is the number of images (JPEG, 512 x 512, with a PNG mask each).
    """

    name = "ingest"
    title = "ingest new images with masks"
    baseline = "read, hash and decode the same files by as many threads; nothing is checked or written"

    def arms(self, folder: Path, size: int | None, progress: Progress) -> tuple[Arm, Arm]:
        """The baseline, and the ingest stage without what it remembers."""
        _draw(folder, size or 500, progress)

        def ours() -> None:
            shutil.rmtree(folder / ".samcl", ignore_errors=True)
            ingest.run(folder, _PARAMS, _DOMAIN)

        return _reader(folder), ours


class ReingestCase:
    """The same data again: files are hashed, what was measured is remembered, the domain is written."""

    name = "reingest"
    title = "ingest unchanged images with masks again"
    baseline = IngestCase.baseline

    def arms(self, folder: Path, size: int | None, progress: Progress) -> tuple[Arm, Arm]:
        """The baseline, and the ingest stage with what it remembers."""
        _draw(folder, size or 500, progress)
        ingest.run(folder, _PARAMS, _DOMAIN)
        return _reader(folder), lambda: ingest.run(folder, _PARAMS, _DOMAIN)


def _reader(folder: Path) -> Arm:
    files = sorted(path for path in (folder / "data" / "raw" / _DOMAIN).rglob("*") if path.is_file())

    def read(path: Path) -> None:
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        with Image.open(BytesIO(data)) as image:
            np.asarray(image)

    def baseline() -> None:
        with ThreadPoolExecutor(num_workers()) as pool:
            list(pool.map(read, files))

    return baseline


def _draw(folder: Path, count: int, progress: Progress = silent) -> None:
    """Soft colours with noise, as photos have it, and a rectangle for a mask."""
    raw = folder / "data" / "raw" / _DOMAIN
    rng = np.random.default_rng(0)
    num_test = max(1, count // 5)
    for at in range(count):
        split = "test" if at < num_test else "train"
        for kind in ("images", "masks"):
            (raw / split / kind).mkdir(parents=True, exist_ok=True)
        soft = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((_SIDE_PX, _SIDE_PX), 3)
        noisy = np.asarray(soft).astype(np.int16) + rng.integers(-12, 13, (_SIDE_PX, _SIDE_PX, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(raw / split / "images" / f"{at:06d}.jpg", quality=90)
        mask = np.zeros((_SIDE_PX, _SIDE_PX), dtype=np.uint8)
        left, top = rng.integers(0, _SIDE_PX // 2, 2)
        mask[top : top + _SIDE_PX // 3, left : left + _SIDE_PX // 3] = 255
        Image.fromarray(mask).save(raw / split / "masks" / f"{at:06d}.png")
        progress("drawing images", at + 1, count)
