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
from samcl_core.speed.cases import Arm, Arms, Case, Setup
from samcl_core.speed.ground import draw_mask, draw_photo
from samcl_core.stages import ingest

__all__ = ["ingest_case", "reingest_case"]

_SIDE_PX = 512
_DOMAIN = "Pictures"
_BASELINE = "read, hash and decode the same files by as many threads; nothing is checked or written"
_PARAMS: Params = parse_params({"domains": {_DOMAIN: {"role": "learn"}}, "modules": {_DOMAIN: {}}})


def ingest_case() -> Case:
    """New data: every file is read, hashed, decoded, checked and compared, and the domain is written."""
    return Case("ingest", "ingest new images with masks (size: images)", _BASELINE, _ingest, groups=("cpu",))


def reingest_case() -> Case:
    """The same data again: files are hashed, what was measured is remembered, the domain is written."""
    return Case("reingest", "ingest unchanged images again (size: images)", _BASELINE, _reingest, groups=("cpu",))


def _ingest(setup: Setup) -> Arms:
    count = _draw(setup)

    def ours() -> int:
        shutil.rmtree(setup.folder / ".samcl", ignore_errors=True)
        return _ingest_all(setup.folder)

    return Arms(_reader(setup.folder), ours, {"images": count})


def _reingest(setup: Setup) -> Arms:
    count = _draw(setup)
    _ingest_all(setup.folder)
    return Arms(_reader(setup.folder), lambda: _ingest_all(setup.folder), {"images": count})


def _ingest_all(folder: Path) -> int:
    ingest.run(folder, _PARAMS, _DOMAIN)
    return len(list((folder / "data" / _DOMAIN).glob("*/images/*")))


def _reader(folder: Path) -> Arm:
    files = sorted(path for path in (folder / "data" / "raw" / _DOMAIN).rglob("*") if path.is_file())

    def read(path: Path) -> None:
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        with Image.open(BytesIO(data)) as image:
            np.asarray(image)

    def baseline() -> int:
        with ThreadPoolExecutor(num_workers()) as pool:
            return len(list(pool.map(read, files))) // 2

    return baseline


def _draw(setup: Setup) -> int:
    raw = setup.folder / "data" / "raw" / _DOMAIN
    rng = np.random.default_rng(0)
    count = max(2, setup.size or 500)
    num_test = max(1, count // 5)
    for at in range(count):
        split = "test" if at < num_test else "train"
        for kind in ("images", "masks"):
            (raw / split / kind).mkdir(parents=True, exist_ok=True)
        draw_photo(rng, _SIDE_PX).save(raw / split / "images" / f"{at:06d}.jpg", quality=90)
        Image.fromarray(draw_mask(rng, _SIDE_PX)).save(raw / split / "masks" / f"{at:06d}.png")
        setup.progress("drawing images", at + 1, count)
    return count
