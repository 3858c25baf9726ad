"""How good a backbone is before it learnt anything of a domain: mean IoU on drawn pictures, by kind of prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from samcl_core.backbones import Backbone, Prefix, Prompts
from samcl_core.domains.points import box_of, sample_points
from samcl_core.domains.scenes import SCENES
from samcl_core.domains.synthetic import draw
from samcl_core.evaluation.metrics import iou
from samcl_core.progress import Progress, silent
from samcl_core.training.losses import resize_logits
from samcl_core.training.pretrain_data import draw_batch
from samcl_core.training.pretrain_options import PretrainOptions

__all__ = ["LEAVES", "PROMPTS", "Scores", "score_zero_shot", "zero_shot_names"]

LEAVES = "dead leaves"
PROMPTS = {"3 points": 3, "1 point": 1, "box": 0}
"""Kind of prompt and its number of points."""

Scores = dict[str, dict[str, list[float]]]
"""Pictures, kind of prompt, and the mean IoU of each seed."""

_HELD_OUT = 9_000  # added to the seed of dead leaves: trainings use small seeds
_BATCH = 16

Picture = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def zero_shot_names() -> tuple[str, ...]:
    """What is scored: ``natural``, every other scene, and dead leaves."""
    return ("natural", *(name for name in SCENES if name != "natural"), LEAVES)


def score_zero_shot(
    backbone: Backbone,
    *,
    names: Sequence[str] | None = None,
    num_images: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress = silent,
) -> Scores:
    """Segment one object a picture by 3 points, by 1 point and by its box, at the model's own resolution.

    Pretraining never sees the scenes; its dead leaves come from other seeds. Points are drawn as in the pipeline, from
    the mask, and the seed draws pictures and points.

    Args:
        backbone: on any device.
        names: some of ``zero_shot_names``; ``None`` for all.
        num_images: pictures for each name and seed.
        seeds: one mean each.
        progress: called after each set of pictures.
    """
    wanted = zero_shot_names() if names is None else tuple(names)
    scores: Scores = {name: {kind: [] for kind in PROMPTS} for name in wanted}
    for count, (name, seed) in enumerate((name, seed) for name in wanted for seed in seeds):
        pictures = _pictures(name, backbone.image_size, num_images, seed)
        prefixes = _prefixes(backbone, pictures)
        for kind, num_points in PROMPTS.items():
            scores[name][kind].append(_mean_iou(backbone, prefixes, pictures, num_points, seed))
        progress(f"score {name}", count + 1, len(wanted) * len(seeds))
    return scores


def _pictures(name: str, size_px: int, count: int, seed: int) -> list[Picture]:
    if name != LEAVES:
        return [draw(name, size_px=size_px, seed=seed, split="test", index=index) for index in range(count)]
    options = PretrainOptions(batch_size=4, objects=1, guided=0, seed=_HELD_OUT + seed)  # objects with parts, too
    found: list[Picture] = []
    step = 0
    while len(found) < count:
        batch = draw_batch(options, step)
        images = batch.images.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        usable = batch.weight.bool().tolist()
        found += [
            (image, mask > 0)
            for image, mask, is_usable in zip(images, batch.masks.numpy(), usable, strict=True)
            if is_usable
        ]
        step += 1
    return found[:count]


def _prefixes(backbone: Backbone, pictures: Sequence[Picture]) -> list[Prefix]:
    pixels = [backbone.preprocess(image) for image, _ in pictures]
    batches = [torch.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return [backbone.prefix(batch.to(backbone.device)) for batch in batches]


@torch.no_grad()
def _mean_iou(
    backbone: Backbone, prefixes: Sequence[Prefix], pictures: Sequence[Picture], num_points: int, seed: int
) -> float:
    found: list[float] = []
    for prefix in prefixes:
        start = len(found)
        masks = [mask for _, mask in pictures[start : start + len(prefix)]]
        prompts = _prompts(masks, num_points, start, seed).to(backbone.device)
        logits = resize_logits(backbone.suffix(prefix, prompts).logits, masks[0].shape[-1])[:, 0]
        found += iou(logits.cpu(), torch.from_numpy(np.stack(masks))).tolist()
    return sum(found) / len(found)


def _prompts(masks: Sequence[NDArray[np.bool_]], num_points: int, start: int, seed: int) -> Prompts:
    if num_points == 0:
        boxes = torch.tensor([box_of(mask) for mask in masks])
        return Prompts(torch.zeros(len(masks), 0, 2), torch.zeros(len(masks), 0, dtype=torch.long), boxes)
    drawn = [sample_points(mask, num_points, key=str(start + index), seed=seed)[0] for index, mask in enumerate(masks)]
    points = torch.from_numpy(np.stack(drawn)).float()
    return Prompts(points, torch.ones(points.shape[:2], dtype=torch.long))
