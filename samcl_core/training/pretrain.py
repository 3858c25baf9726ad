"""Pretrain ``sam_nano`` for promptable segmentation on procedurally drawn scenes, on the device that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samcl_core.backbones.base import FRAME_PX, Prompts
from samcl_core.backbones.frozen import scaled
from samcl_core.backbones.nano import NANO, build_nano
from samcl_core.backbones.sam import decode_batch
from samcl_core.errors import IntegrityError, TrainingError
from samcl_core.files import digest_json
from samcl_core.tensors import load_tensors, save_tensors
from samcl_core.training.leaves import draw_leaves
from samcl_core.training.losses import resize_logits

__all__ = [
    "PretrainBatch",
    "PretrainOptions",
    "draw_batch",
    "fresh_nano",
    "grouping_loss",
    "learning_rate",
    "pretrain",
    "prompt_loss",
]


@dataclass(frozen=True)
class PretrainOptions:
    """How ``sam_nano`` is pretrained.

    Attributes:
        steps: optimiser steps.
        batch_size: scenes a step.
        objects: prompted objects a scene; the encoder runs once for all of them.
        lr: highest learning rate (AdamW).
        warmup: steps of the linear warm-up.
        guided: steps in which the loss goes over from its guided form to SAM's own (see ``prompt_loss``).
        decay: share of the steps, at the end, in which the learning rate falls linearly to zero.
        weight_decay: of AdamW.
        checkpoint_every: steps between two checkpoints.
        seed: everything random follows from it and the number of the step.
    """

    steps: int = 16_000
    batch_size: int = 4
    objects: int = 8
    lr: float = 1e-3
    warmup: int = 200
    guided: int = 6_000
    decay: float = 0.3
    weight_decay: float = 0.01
    checkpoint_every: int = 500
    seed: int = 0


@dataclass
class PretrainBatch:
    """Scenes with prompted objects.

    Attributes:
        images: (B, 3, S, S) float, 0..255.
        layers: (B, S, S) int64, the object of every pixel.
        masks: (B * K, S, S) float 0 or 1, the K objects of scene 0 first.
        prompts: B * K prompts in the 1024 frame.
        weight: (B * K,) 1 where the object is large enough to be asked for, else 0.
    """

    images: Tensor
    layers: Tensor
    masks: Tensor
    prompts: Prompts
    weight: Tensor


def draw_batch(options: PretrainOptions, step: int, device: str = "cpu") -> PretrainBatch:
    """Batch number ``step``: the same for the same seed and step, whatever was drawn before."""
    generator = torch.Generator(device=device).manual_seed(options.seed * 1_000_003 + step)
    pick = _Pick(generator)
    scenes = draw_leaves(options.batch_size, NANO.image_size, generator, num_layers=2 + pick.below(9))
    masks, weight = _objects(scenes.layers, options.objects, generator)
    prompts = _prompts(masks, pick, generator)
    return PretrainBatch(scenes.images, scenes.layers, masks, prompts, weight)


class _Pick:
    """Choices that hold for the whole batch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator, device=self.generator.device))


def _objects(layers: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` layers a scene, larger ones more often: masks (B * count, S, S) and which are worth asking for."""
    size = layers.shape[-1]
    areas = F.one_hot(layers.flatten(1), int(layers.max()) + 1).sum(1).float() / size**2
    odds = areas.sqrt() * ((areas > 0.008) & (areas < 0.7))
    odds[:, 0] *= 0.1  # the background is rarely what a person points at
    chosen = torch.multinomial(odds + 1e-6, count, replacement=True, generator=generator)
    masks = (layers[:, None] == chosen[..., None, None]).flatten(0, 1).float()
    return masks, (odds.gather(1, chosen).flatten() > 0).float()


def _prompts(masks: Tensor, pick: _Pick, generator: torch.Generator) -> Prompts:
    """Points, sometimes with background points or a jittered box; one kind for the whole batch."""
    kind = pick.below(10)
    num_points = (1, 2, 3, 3, 3, 3, 5, 3, 0, 0)[kind]
    num_background = 2 if kind == 7 else 0
    inside = _draw_points(masks, num_points, generator)
    outside = _draw_points(1 - masks, num_background, generator)
    labels = torch.cat([inside.new_ones(inside.shape[:2]), inside.new_zeros(outside.shape[:2])], 1).long()
    return Prompts(torch.cat([inside, outside], 1), labels, _boxes(masks, generator) if kind >= 8 else None)


def _draw_points(masks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(N, count, 2) pixel centres inside ``masks`` (N, S, S), in the 1024 frame."""
    size = masks.shape[-1]
    if count == 0:
        return masks.new_zeros(len(masks), 0, 2)
    cells = torch.multinomial(masks.flatten(1) + 1e-12, count, replacement=True, generator=generator)
    return (torch.stack([cells % size, cells // size], -1) + 0.5) * (FRAME_PX / size)


def _boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 4) boxes around ``masks`` in the 1024 frame, each side moved by up to a tenth of the box."""
    size = masks.shape[-1]
    columns, rows = masks.amax(1) > 0, masks.amax(2) > 0
    left, top = columns.int().argmax(1), rows.int().argmax(1)
    right, bottom = size - columns.flip(1).int().argmax(1), size - rows.flip(1).int().argmax(1)
    box = torch.stack([left, top, right, bottom], 1).float()
    extent = torch.stack([right - left, bottom - top, right - left, bottom - top], 1)
    moved = box + extent * 0.1 * (2 * torch.rand(box.shape, generator=generator, device=box.device) - 1)
    return moved.clamp(0, size - 1e-3) * (FRAME_PX / size)


def prompt_loss(
    logits: Tensor, iou: Tensor, masks: Tensor, weight: Tensor, guidance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """SAM's loss, 20 focal : 1 dice : 1 IoU (Kirillov et al. 2023, appendix A), led in by a balanced cross-entropy.

    From random weights SAM's own loss stays at "everything is background": most pixels are. Cross-entropy with the
    object and its surroundings weighing the same leaves that place within some hundred steps, but over-segments.
    So the mask term is ``guidance`` * 2 * balanced cross-entropy + (1 - ``guidance``) * 20 * focal.

    Args:
        logits: (N, S, S) mask logits.
        iou: (N,) predicted IoU.
        masks: (N, S, S) 0 or 1.
        weight: (N,) samples with 0 do not count.
        guidance: 1 at the start of the training, 0 at its end.

    Returns:
        The loss, and the mean real IoU of the counted samples (no gradient).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    probability = logits.sigmoid()
    area, size = masks.sum((1, 2)), masks[0].numel()
    inside = (entropy * masks).sum((1, 2))
    balanced = 0.5 * (inside / area.clamp(min=1) + (entropy.sum((1, 2)) - inside) / (size - area).clamp(min=1))
    miss = probability + masks - 2 * probability * masks  # 1 - probability of the right answer
    focal = (entropy * miss.square()).mean((1, 2))
    overlap = (probability * masks).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + area + 1)
    found = (logits > 0).float()
    both = (found * masks).sum((1, 2))
    real = (both / (found.sum((1, 2)) + area - both).clamp(min=1)).detach()
    total = guidance * 2 * balanced + (1 - guidance) * 20 * focal + dice + (iou - real).square()
    num = weight.sum().clamp(min=1)
    return (total * weight).sum() / num, (real * weight).sum() / num


def grouping_loss(features: Tensor, layers: Tensor) -> Tensor:
    """Cross-entropy between the likeness of two cells of the embedding and how much of the same objects they show.

    Every pair of cells of every scene teaches the encoder, where a prompt teaches it one object only. Used while the
    training is guided.

    Args:
        features: (B, C, G, G) image embedding.
        layers: (B, S, S) int64, the object of every pixel.
    """
    shares = F.one_hot(layers, int(layers.max()) + 1).movedim(-1, 1).float()
    shares = F.adaptive_avg_pool2d(shares, features.shape[-1]).flatten(2)
    same = (shares.transpose(1, 2) @ shares).clamp(0, 1)
    directions = F.normalize(features.flatten(2), dim=1)
    likeness = directions.transpose(1, 2) @ directions
    return F.binary_cross_entropy_with_logits(10 * (likeness - 0.5), same)


def learning_rate(options: PretrainOptions, step: int) -> float:
    """Linear warm-up, constant, then linear to zero at ``options.steps``."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    left = (options.steps - step) / max(1.0, options.decay * options.steps)
    return options.lr * warm * min(1.0, left)


def fresh_nano(seed: int) -> nn.Module:
    """An untrained official ``Sam`` of ``sam_nano``'s numbers, trainable, with torch's default initialisation.

    The weights that ``sam_nano`` has while none are shipped are drawn for reproducibility, with gradients too steep to
    train from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_nano(NANO)
        # The official class starts it at zero; the encoder could not tell places apart.
        nn.init.normal_(network.get_parameter("image_encoder.pos_embed"), std=0.02)
    return network


def pretrain(
    network: nn.Module,
    options: PretrainOptions,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    num_workers: int = 1,
) -> nn.Module:
    """Train ``network`` in place and return it in eval mode.

    Args:
        network: from ``fresh_nano``.
        options: how long and how.
        device: where it trains and where scenes are drawn.
        checkpoint: file to continue from and to write; one of other options is ignored.
        on_step: called with the number of finished steps and ``loss``, ``iou`` and ``lr`` of the last one.
        num_workers: processes that draw ahead (CPU only); the result does not depend on it.

    Raises:
        TrainingError: the loss is not finite.
    """
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    start = _resume(checkpoint, options, network, optimizer)
    for step, batch in _batches(options, start, device, num_workers):
        rate = learning_rate(options, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        guidance = max(0.0, 1 - step / max(1, options.guided))
        features, logits, iou = _forward(network, batch)
        loss, real = prompt_loss(logits, iou, batch.masks, batch.weight, guidance)
        if guidance > 0:
            loss = loss + guidance * grouping_loss(features, batch.layers)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step}", hint="lower --lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if on_step is not None:
            on_step(done, {"loss": loss.item(), "iou": real.item(), "lr": rate})
        if checkpoint is not None and (done % options.checkpoint_every == 0 or done == options.steps):
            _save(checkpoint, options, network, optimizer, done)
    return network.eval()


def _forward(network: Any, batch: PretrainBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding (B, C, G, G), logits (B * K, S, S) and predicted IoU (B * K,), from one pass for all objects."""
    embedding = network.image_encoder((batch.images - network.pixel_mean) / network.pixel_std)
    features = embedding.repeat_interleave(len(batch.prompts) // len(embedding), 0)
    prompts, encoder = scaled(batch.prompts, NANO.image_size), network.prompt_encoder
    points = (prompts.points, prompts.labels) if prompts.labels.shape[1] else None
    sparse, dense = encoder(points=points, boxes=prompts.boxes, masks=None)
    masks = decode_batch(network.mask_decoder, features, encoder.get_dense_pe(), sparse, dense)
    return embedding, resize_logits(masks.logits, NANO.image_size)[:, 0], masks.iou[:, 0]


def _batches(
    options: PretrainOptions, start: int, device: str, num_workers: int
) -> Iterator[tuple[int, PretrainBatch]]:
    steps = range(start, options.steps)
    if device != "cpu" or num_workers == 0:
        yield from ((step, draw_batch(options, step, device)) for step in steps)
        return
    ahead = 4 * num_workers
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        waiting = [pool.submit(draw_batch, options, step) for step in steps[:ahead]]
        for position, step in enumerate(steps):
            batch = waiting.pop(0).result()
            if position + ahead < len(steps):
                waiting.append(pool.submit(draw_batch, options, steps[position + ahead]))
            yield step, batch


def _one_thread() -> None:
    torch.set_num_threads(1)


def _key(options: PretrainOptions, network: nn.Module) -> str:
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    settings = {k: v for k, v in asdict(options).items() if k != "checkpoint_every"}
    return digest_json({"options": settings, "shapes": shapes})


def _save(
    path: Path, options: PretrainOptions, network: nn.Module, optimizer: torch.optim.Optimizer, done: int
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
    save_tensors(path, tensors, {"key": _key(options, network), "step": done})


def _resume(path: Path | None, options: PretrainOptions, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if path is None or not path.is_file():
        return 0
    try:
        tensors, meta = load_tensors(path)
    except IntegrityError:
        return 0
    if not isinstance(meta, dict) or meta.get("key") != _key(options, network):
        return 0
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(meta["step"])
