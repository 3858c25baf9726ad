"""A small real training task. As a program it is the process that a test kills: FOLDER OUT CHECKPOINT SECONDS_A_STEP."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import Adapter
from samcl_core.backbones import Backbone, tiny_backbone
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.files import sha256_file
from samcl_core.tensors import save_tensors
from samcl_core.training import PrefixCache, train_module

NUM = 10
OPTIONS = TrainParams(
    epochs=6,
    batch_size=4,
    lr=0.01,
    schedule="cosine",
    upsampling="bilinear",
    loss_reduction="mean",
)


def write_samples(folder: Path, num: int = NUM) -> list[Sample]:
    """Bright discs on a dark, noisy ground: 80 x 64 px images with masks, one foreground point each."""
    samples = []
    for row in range(num):
        rng = np.random.default_rng(row)
        x, y, radius = rng.integers(24, 56), rng.integers(20, 44), rng.integers(10, 18)
        rows, columns = np.mgrid[0:64, 0:80]
        disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        image = rng.integers(0, 60, (64, 80, 3)) + disc[..., None] * np.array([150, 120, 40])
        names = folder / f"images/{row}.png", folder / f"masks/{row}.png"
        for path, pixels in zip(names, (image, disc * 255), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        samples.append(
            Sample(
                id=f"train/images/{row}.png",
                image=names[0],
                mask=names[1],
                image_sha256=sha256_file(names[0]),
                mask_sha256=sha256_file(names[1]),
                width=80,
                height=64,
                points=((float(x) * 1024 / 80, float(y) * 1024 / 64),),
                labels=(1,),
                box=None,
            )
        )
    return samples


def small_adapter(backbone: Backbone) -> Adapter:
    """An AugModule of rank 4 with the default profile's options."""
    return build_adapter(
        "augmodule", backbone.site, rank=4, window_heatmap="crop", neck_axes="image", point_labels="signed"
    )


def main(folder: Path, out: Path, checkpoint: Path, seconds_a_step: float) -> None:
    """Train and write the tensors."""
    backbone = tiny_backbone()
    result = train_module(
        backbone,
        small_adapter(backbone),
        PrefixCache(folder / "cache", backbone),
        write_samples(folder),
        OPTIONS,
        seed=3,
        checkpoint=checkpoint,
        progress=lambda what, done, total: time.sleep(seconds_a_step),
    )
    save_tensors(out, result.tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
