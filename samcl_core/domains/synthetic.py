"""Seeded procedural domains in the published layout: for demos, tests and benchmarks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from samcl_core.domains.images import save_png
from samcl_core.domains.scenes import SCENES, Drawing
from samcl_core.errors import UsageError
from samcl_core.files import staged_folder
from samcl_core.progress import Progress, silent

__all__ = ["MAX_AREA_FRAC", "MIN_AREA_FRAC", "SCENES", "draw", "write_domain"]

MIN_AREA_FRAC = 0.02
MAX_AREA_FRAC = 0.40
_MAX_TRIES = 100


def draw(scene: str, *, size_px: int, seed: int, split: str, index: int) -> Drawing:
    """One picture of a scene: (S, S, 3) uint8 RGB and the (S, S) bool mask of its object.

    It depends on the arguments alone, so that domains of any size and order share their pictures. Objects outside
    2 % to 40 % of the picture are drawn again from the same stream.

    Raises:
        UsageError: the scene is unknown, or the size is below 32 pixels.
    """
    if scene not in SCENES:
        raise UsageError(f"scene {scene!r} is unknown, expected one of {', '.join(SCENES)}")
    if size_px < 32:
        raise UsageError(f"a picture of {size_px} pixels is too small, expected at least 32")
    digest = hashlib.sha256(f"{seed}:{scene}:{split}:{index}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
    for _ in range(_MAX_TRIES):
        image, mask = SCENES[scene](rng, size_px)
        if MIN_AREA_FRAC <= mask.mean() <= MAX_AREA_FRAC:
            return image, mask
    raise RuntimeError(f"scene {scene!r} drew no object of sensible size in {_MAX_TRIES} tries")


def write_domain(
    root: Path, scene: str, num_train: int, num_test: int, size_px: int, seed: int, progress: Progress = silent
) -> None:
    """Write ``{train,test}/{images,masks}/<scene>_NNNN.png`` below ``root``, replacing what is there.

    The layout is the published one, without ``points.json``: the points stage draws them.

    Raises:
        UsageError: the scene is unknown, the size is below 32 pixels, or a count is not positive.
    """
    counts = {"train": num_train, "test": num_test}
    if min(counts.values()) < 1:
        raise UsageError(f"{num_train} training and {num_test} test pictures, expected at least 1 of each")
    done, total = 0, sum(counts.values())
    with staged_folder(root) as folder:
        for split, count in counts.items():
            for kind in ("images", "masks"):
                (folder / split / kind).mkdir(parents=True)
            for index in range(count):
                image, mask = draw(scene, size_px=size_px, seed=seed, split=split, index=index)
                name = f"{scene}_{index:04d}.png"
                save_png(folder / split / "images" / name, image)
                save_png(folder / split / "masks" / name, mask)
                done += 1
                progress(f"drawing {scene}", done, total)
