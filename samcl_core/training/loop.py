"""Train one module on cached prefixes. The recipe is ``train_module``, top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import samcl_core
from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones.base import Backbone, Masks, Prefix, Prompts
from samcl_core.config import PROFILES, TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.errors import SamclError, TrainingError
from samcl_core.files import digest_json
from samcl_core.progress import Progress, silent
from samcl_core.tensors import tensor_bytes
from samcl_core.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from samcl_core.training.data import MaskCache, prompts_of
from samcl_core.training.draw_prompts import cosam_prompts
from samcl_core.training.draws import stream_of
from samcl_core.training.losses import LossParts, mask_loss, resize_logits
from samcl_core.training.point_loss import PointLossParts, point_loss
from samcl_core.training.prefix_cache import PrefixCache
from samcl_core.training.schedule import learning_rate
from samcl_core.training.validation import val_iou

__all__ = ["Batch", "Extra", "Forward", "TrainResult", "batch_loss", "train_module", "training_key"]

T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """A trained module.

    Attributes:
        tensors: float32 on the CPU, in the order of ``adapter.shapes()``.
        curve: one entry an epoch: ``epoch`` (from 1), ``step`` (done so far), ``lr`` (of the last step), ``focal``,
            ``dice``, ``iou`` (CoSAM's loss: ``bce``, ``dice``), ``total`` (means over the epoch's batches, weighted by
            their size), ``val_iou`` with val samples, and ``seconds``, which differs from run to run and belongs in no
            digest.
    """

    tensors: ModuleTensors
    curve: list[dict[str, float]]


@dataclass(frozen=True)
class Batch:
    """What one step needs, on the CPU.

    Attributes:
        prefix: of the images.
        prompts: of the images.
        masks: (B, S, S) uint8 ground truth at the size of the loss.
        samples: what the batch was made of.
        step: number of the step in the training, from 0.
        seed: of the training; with ``step`` it seeds what is random in the step.
    """

    prefix: Prefix
    prompts: Prompts
    masks: Tensor
    samples: tuple[Sample, ...] = ()
    step: int = 0
    seed: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        prefix, masks = self.prefix.to(device, non_blocking=True), self.masks.to(device, non_blocking=True)
        return replace(self, prefix=prefix, prompts=self.prompts.to(device), masks=masks)


Forward = Callable[[ModuleTensors, Batch], Masks]
"""Answers of some tensors of the adapter in training to a batch."""


class Extra:
    """What a strategy of continual learning adds to the training of one adapter. This one adds nothing."""

    def key(self) -> Any:
        """JSON value of everything that the training's result depends on through this object."""
        return None

    def chosen(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]:
        """The samples of training step ``step`` (from 0): ``samples`` of the new domain, and whatever is replayed."""
        return samples

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        """A 0-d term that is added to the loss, or ``None``.

        Args:
            tensors: the module in training, on the training device.
            batch: the step's batch; prefix, prompts and masks are on the training device.
            found: what the module in training answers.
            forward: answers of other tensors of the same adapter: ``forward(tensors, batch)``.
        """
        return None

    def after_backward(self, tensors: ModuleTensors) -> None:
        """Called between the gradients and the update, for strategies that freeze a part of the tensors."""


_NOTHING = Extra()


def train_module(
    backbone: Backbone,
    adapter: Adapter,
    cache: PrefixCache,
    samples: Sequence[Sample],
    options: TrainParams,
    *,
    seed: int,
    initial: ModuleTensors | None = None,
    checkpoint: Path | None = None,
    extra: Extra | None = None,
    val: Sequence[Sample] = (),
    progress: Progress = silent,
) -> TrainResult:
    """Train a module of ``adapter`` on ``samples``; nothing but its own tensors is changed.

    On the CPU the result's bytes depend on the arguments alone: not on the order of ``samples``, not on what is
    cached, and not on whether the run was killed and continued.

    Args:
        backbone: frozen, on the device where to train.
        adapter: which kind of module.
        cache: prefixes of ``backbone``.
        samples: the domain's training samples.
        options: epochs, batch size, rates and losses; null options take the default profile's value.
        seed: initial tensors and order of the samples.
        initial: tensors to go on from, which stay as they are; ``None`` starts afresh.
        checkpoint: file to continue from and to write every ``checkpoint_every_epochs`` epochs; it stays after the
            end, so that nothing is lost until the caller has stored the result and calls ``clear_checkpoint``.
        extra: what a strategy adds to the loss and to the batches.
        val: validation samples: the tensors of the epoch with the best mean IoU on them are the result, of equal ones
            the earliest; none takes the last epoch.
        progress: called after each step.

    Raises:
        TrainingError: there are no samples, the loss is not finite, or a frozen weight moved.
        PromptError: a sample has no prompt.
        ImageError: an image or mask cannot be read.
        DataError: an image is not the one of the manifest any more.
    """
    options = options.model_copy(update=_defaults(options))
    samples = sorted(samples, key=_place)
    if not samples:
        raise TrainingError("there are 0 training samples, expected at least 1", hint="samcl ingest")
    steps_per_epoch = math.ceil(len(samples) / options.batch_size)
    num_steps = steps_per_epoch * options.epochs
    frozen = backbone.weights_digest()
    masks = MaskCache(backbone.image_size)
    cache.warm(samples, progress)

    extra = extra or _NOTHING
    val = sorted(val, key=_place)
    key = training_key(backbone, adapter, cache, samples, options, seed, initial, extra, val)
    resumed = None if checkpoint is None else load_checkpoint(checkpoint, key)
    state = resumed or TrainState(0, adapter.fresh(seed) if initial is None else initial)
    tensors = {name: state.tensors[name].detach().to(backbone.device, copy=True) for name in adapter.shapes()}
    adam = torch.optim.Adam([tensor.requires_grad_() for tensor in tensors.values()], lr=options.lr)
    state.restore(adam, tensors)
    curve, best = list(state.curve), dict(state.best)

    for epoch in range(state.epoch, options.epochs):
        started = time.perf_counter()
        step, num_seen = epoch * steps_per_epoch, 0
        sums: dict[str, float] = {}
        for batch in _batches(backbone, cache, masks, samples, options, seed, epoch, extra):
            adam.param_groups[0]["lr"] = _rate(options, step, num_steps)
            parts = _step(backbone, adapter, tensors, batch, options, adam, extra)
            if not math.isfinite(parts["total"]):
                raise _diverged(options, epoch, step, f"the loss is {parts['total']}")
            sums = {name: sums.get(name, 0.0) + part * len(batch.masks) for name, part in parts.items()}
            num_seen += len(batch.masks)
            step += 1
            progress(f"epoch {epoch + 1}/{options.epochs}, loss {parts['total']:.4f}", step, num_steps)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise _diverged(options, epoch, step - 1, "the module holds NaN or infinite weights")
        means = {name: total / num_seen for name, total in sums.items()}
        if val:
            means["val_iou"] = val_iou(backbone, adapter, tensors, cache, masks, val, options)
            if means["val_iou"] > max((entry["val_iou"] for entry in curve), default=-1.0):
                best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        rate = _rate(options, step - 1, num_steps)
        seconds = time.perf_counter() - started
        curve.append({"epoch": epoch + 1, "step": step, "lr": rate, **means, "seconds": seconds})
        is_due = (epoch + 1) % options.checkpoint_every_epochs == 0 or epoch + 1 == options.epochs
        if checkpoint is not None and is_due:
            _save(checkpoint, key, TrainState.of(epoch + 1, tensors, adam, curve, best), progress, step, num_steps)

    if backbone.weights_digest() != frozen:
        raise TrainingError(f"training changed the frozen weights of {backbone.name}; the module is not usable")
    return TrainResult({name: (best or tensors)[name].detach().cpu() for name in tensors}, curve)


def training_key(
    backbone: Backbone,
    adapter: Adapter,
    cache: PrefixCache,
    samples: Sequence[Sample],
    options: TrainParams,
    seed: int,
    initial: ModuleTensors | None = None,
    extra: Extra | None = None,
    val: Sequence[Sample] = (),
) -> str:
    """Digest of everything the trained tensors depend on. ``samples`` and ``val`` are sorted."""
    data, val_data = (
        [[s.id, s.image_sha256, s.mask_sha256, s.points, s.labels, s.box] for s in part] for part in (samples, val)
    )
    return digest_json(
        {
            "extra": None if extra is None else extra.key(),
            "options": options.model_dump(exclude={"checkpoint_every_epochs", "module_dtype"}),
            "adapter": [adapter.kind, adapter.parameters(), list(adapter.shapes().items())],
            "backbone": [backbone.name, backbone.sha256, backbone.preprocessing, backbone.image_size],
            "cache_dtype": cache.dtype,
            "data": data,
            "val": val_data,
            "seed": seed,
            "initial": None if initial is None else hashlib.sha256(tensor_bytes(initial)).hexdigest(),
            "device": backbone.device.type,
            "versions": [samcl_core.__version__, torch.__version__],
        }
    )


def _place(sample: Sample) -> tuple[str, str, str]:
    """The samples' order; images of two domains may have one id."""
    return sample.id, sample.image_sha256, sample.mask_sha256


def _defaults(options: TrainParams) -> dict[str, Any]:
    return {name: value for name, value in PROFILES["default"]["train"].items() if getattr(options, name) is None}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    """The samples' order in one epoch; it needs no state of the epochs before it."""
    order: list[int] = stream_of("samcl.train.order", seed, epoch).permutation(count).tolist()
    return order


def _rate(options: TrainParams, step: int, num_steps: int) -> float:
    return learning_rate(
        step,
        num_steps=num_steps,
        epochs=options.epochs,
        lr=options.lr,
        lr_min=options.lr_min,
        schedule=options.schedule or "cosine",
        warmup_frac=options.warmup_frac,
        drop_epochs=options.drop_epochs,
    )


def _step(
    backbone: Backbone,
    adapter: Adapter,
    tensors: ModuleTensors,
    batch: Batch,
    options: TrainParams,
    adam: torch.optim.Adam,
    extra: Extra = _NOTHING,
) -> dict[str, float]:
    """One update; returns the loss before it."""

    def forward(of: ModuleTensors, batch: Batch) -> Masks:
        return backbone.suffix(batch.prefix, batch.prompts, adapter.hooks(of, batch.prompts), training=True)

    batch = batch.to(backbone.device)
    found = forward(tensors, batch)
    loss = batch_loss(found, batch, options)
    penalty = extra.penalty(tensors, batch, found, forward)
    adam.zero_grad()
    (loss.total if penalty is None else loss.total + penalty).backward()  # type: ignore[no-untyped-call]
    extra.after_backward(tensors)
    adam.step()
    parts = loss.values()
    if penalty is not None:
        parts["penalty"] = float(penalty.detach())
        parts["total"] += parts["penalty"]
    return parts


def batch_loss(found: Masks, batch: Batch, options: TrainParams) -> LossParts | PointLossParts:
    """The training loss of one batch, before anything that a strategy adds; all on one device."""
    if options.loss == "cosam":
        return point_loss(found.logits, batch.masks, stream_of("samcl.train.loss", batch.seed, batch.step))
    logits = resize_logits(found.logits, batch.masks.shape[-1], options.upsampling or "bilinear")
    return mask_loss(logits, batch.masks, found.iou, options.loss_reduction or "mean")


def _batches(
    backbone: Backbone,
    cache: PrefixCache,
    masks: MaskCache,
    samples: Sequence[Sample],
    options: TrainParams,
    seed: int,
    epoch: int,
    extra: Extra,
) -> Iterator[Batch]:
    """The batches of one epoch; beside a GPU the next one is gathered while the current one is computed."""
    order, size = _order(len(samples), seed, epoch), options.batch_size

    def gather(start: int) -> Batch:
        step = epoch * math.ceil(len(order) / size) + start // size
        chosen = extra.chosen([samples[row] for row in order[start : start + size]], step)
        truth = masks.get(chosen)
        if options.prompts == "cosam":
            prompts = cosam_prompts(truth, backbone.site.grid, seed=seed, step=step)
        else:
            prompts = prompts_of(chosen)
        return Batch(cache.get(chosen), prompts, truth, tuple(chosen), step, seed)

    starts = range(0, len(order), size)
    return map(gather, starts) if backbone.device.type == "cpu" else _ahead(gather, starts)


def _ahead(gather: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """``map`` with one call running ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for start in starts:
            following = pool.submit(gather, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _save(path: Path, key: str, state: TrainState, progress: Progress, step: int, num_steps: int) -> None:
    """Write a checkpoint; a full disk costs the possibility to continue, not the training."""
    try:
        save_checkpoint(path, key, state)
    except SamclError as exc:
        progress(f"no checkpoint of epoch {state.epoch}: {exc.message}", step, num_steps)


def _diverged(options: TrainParams, epoch: int, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"{what} in epoch {epoch + 1}, step {step + 1}; expected finite numbers",
        hint=f"set train.lr in params.yaml (or modules.<domain>.train.lr) lower than {options.lr:g} and run it again",
    )
