"""A small real training task. As a program (FOLDER OUT CHECKPOINT SECONDS_A_STEP) it is what a test kills."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import Adapter
from samcl_core.backbones import Backbone, tiny_backbone
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.files import sha256_file
from samcl_core.tensors import save_tensors
from samcl_core.training import PrefixCache, mask_loss, masks_of, prompts_of, resize_logits, train_module

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


def teach_decoder(backbone: Backbone, samples: list[Sample], num_steps: int = 100) -> None:
    """Give the random decoder a task it can do a little, so that there is something for a module to adapt."""
    prefix, prompts, masks = PrefixCache(None, backbone).get(samples), prompts_of(samples), masks_of(samples, 64)
    parameters = list(backbone.module.mask_decoder.parameters())
    adam = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], lr=5e-3)
    for _ in range(num_steps):
        found = backbone.suffix(prefix, prompts, training=True)
        logits = resize_logits(found.logits, 64, "bilinear")
        loss = mask_loss(logits, masks, found.iou).total + 5 * F.binary_cross_entropy_with_logits(logits[:, 0], masks)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def with_low_contrast(samples: list[Sample]) -> list[Sample]:
    """The same scenes at half the contrast, as another domain."""
    changed = []
    for sample in samples:
        path = sample.image.with_name(f"low_{sample.image.name}")
        Image.fromarray((np.asarray(Image.open(sample.image)) * 0.5 + 60).astype(np.uint8)).save(path)
        changed.append(replace(sample, image=path, image_sha256=sha256_file(path)))
    return changed


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
