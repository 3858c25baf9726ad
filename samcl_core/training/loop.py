"""Train one module on cached prefixes. The recipe is ``train_module``, top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import samcl_core
from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones.base import Backbone
from samcl_core.config import PROFILES, TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.errors import SamclError, TrainingError
from samcl_core.files import digest_json
from samcl_core.progress import Progress, silent
from samcl_core.tensors import tensor_bytes
from samcl_core.training.batches import batches
from samcl_core.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from samcl_core.training.data import MaskCache
from samcl_core.training.distributed import gathered, is_first, num_processes, rank
from samcl_core.training.precision import precision_on
from samcl_core.training.prefix_cache import PrefixCache
from samcl_core.training.schedule import learning_rate
from samcl_core.training.step import Extra, Updates
from samcl_core.training.validation import val_iou

__all__ = ["TrainResult", "train_module", "training_key"]


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
    cached, and not on whether the run was killed and continued. In a group of processes (``distributed.joined``) all
    of them call this with the same arguments and get the same result; the first one writes checkpoints and reports
    progress. How many they are changes the result by rounding.

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
        TrainingError: there are no samples, the loss is not finite, a frozen weight moved, the GPU's memory is too
            small, or another process of the group has ended or trains something else.
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
    progress = progress if is_first() else silent
    _warm(cache, samples, progress)

    extra = extra or Extra()
    val = sorted(val, key=_place)
    key = training_key(backbone, adapter, cache, samples, options, seed, initial, extra, val)
    resumed = None if checkpoint is None else load_checkpoint(checkpoint, key)
    state = resumed or TrainState(0, adapter.fresh(seed) if initial is None else initial)
    _check_agreement(key, state.epoch)
    tensors = {name: state.tensors[name].detach().to(backbone.device, copy=True) for name in adapter.shapes()}
    adam = torch.optim.Adam([tensor.requires_grad_() for tensor in tensors.values()], lr=options.lr)
    update = Updates(backbone, adapter, tensors, options, adam, extra)
    state.restore(adam, tensors, update.scaler)
    curve, best = list(state.curve), dict(state.best)

    for epoch in range(state.epoch, options.epochs):
        started = time.perf_counter()
        step, num_seen = epoch * steps_per_epoch, 0
        sums: dict[str, float] = {}
        for parts in batches(backbone, cache, masks, samples, options, seed, epoch, extra):
            adam.param_groups[0]["lr"] = _rate(options, step, num_steps)
            found = update(parts)
            if not math.isfinite(found["total"]):
                raise _diverged(options, epoch, step, f"the loss is {found['total']}")
            weight = min(options.batch_size, len(samples) - num_seen)
            sums = {name: sums.get(name, 0.0) + term * weight for name, term in found.items()}
            num_seen += weight
            step += 1
            progress(f"epoch {epoch + 1}/{options.epochs}, loss {found['total']:.4f}", step, num_steps)
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
        if checkpoint is not None and is_due and is_first():
            state = TrainState.of(epoch + 1, tensors, adam, update.scaler, curve, best)
            _save(checkpoint, key, state, progress, step, num_steps)

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
    unused = {"checkpoint_every_epochs", "module_dtype", "precision", "processes"}
    data, val_data = (
        [[s.id, s.image_sha256, s.mask_sha256, s.points, s.labels, s.box] for s in part] for part in (samples, val)
    )
    return digest_json(
        {
            "extra": None if extra is None else extra.key(),
            "options": options.model_dump(exclude=unused),
            "precision": str(precision_on(options.precision or "auto", backbone.device)),
            "processes": num_processes(),
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


def _warm(cache: PrefixCache, samples: Sequence[Sample], progress: Progress) -> None:
    """Have the prefixes of ``samples``; where processes share a folder, each computes a part of what is missing."""
    if num_processes() > 1 and cache.has_files:
        cache.warm(samples[rank() :: num_processes()], progress)
        gathered(None)
    cache.warm(samples, progress)


def _check_agreement(key: str, epoch: int) -> None:
    """See that all processes train the same thing from the same epoch on."""
    found = gathered((key, epoch))
    if len(set(found)) > 1:
        raise TrainingError(
            f"the processes disagree: process 1 trains {found[0][0][:12]} from epoch {found[0][1] + 1} on, process "
            f"{rank() + 1} {key[:12]} from epoch {epoch + 1}; expected the same data, settings, code and checkpoint",
            hint="start all processes with the same command on the same workspace",
        )


def _place(sample: Sample) -> tuple[str, str, str]:
    """The samples' order; images of two domains may have one id."""
    return sample.id, sample.image_sha256, sample.mask_sha256


def _defaults(options: TrainParams) -> dict[str, Any]:
    return {name: value for name, value in PROFILES["default"]["train"].items() if getattr(options, name) is None}


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
