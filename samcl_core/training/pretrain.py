"""Pretrain ``sam_nano`` for promptable segmentation on procedurally drawn scenes, on the device that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samcl_core.backbones.frozen import scaled
from samcl_core.backbones.nano import NANO, build_nano
from samcl_core.backbones.sam import decode_batch
from samcl_core.errors import TrainingError
from samcl_core.training.losses import resize_logits
from samcl_core.training.pretrain_checkpoint import resume_state, save_state
from samcl_core.training.pretrain_data import PretrainBatch, draw_batch
from samcl_core.training.pretrain_options import PretrainOptions, learning_rate

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
        checkpoint: file to continue from and to write. The last state before the rate falls stays in
            ``<checkpoint>_constant`` beside it; a training of more or fewer steps continues from there.
        on_step: called with the number of finished steps and ``loss``, ``iou`` and ``lr`` of the last one.
        num_workers: processes that draw ahead (CPU only); the result does not depend on it.

    Raises:
        TrainingError: the loss is not finite.
        UsageError: the checkpoint belongs to other options; it stays as it is.
    """
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    start = 0 if checkpoint is None else resume_state(checkpoint, options, network, optimizer)
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
        if checkpoint is not None:
            save_state(checkpoint, options, network, optimizer, done)
    return network.eval()


def _forward(network: Any, batch: PretrainBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding (B, C, G, G), logits (B * K, S, S) and predicted IoU (B * K,), from one pass for all objects."""
    embedding = network.image_encoder((batch.images - network.pixel_mean) / network.pixel_std)
    features = embedding.repeat_interleave(len(batch.prompts) // len(embedding), 0)
    encoder = network.prompt_encoder
    prompts = scaled(batch.prompts, NANO.image_size, 4 * encoder.image_embedding_size[0])
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
