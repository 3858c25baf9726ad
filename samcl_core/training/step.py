"""One update of a module: the gradients of a batch, however it is divided, then Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones.base import Backbone, Masks
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.errors import TrainingError
from samcl_core.training.batches import Batch
from samcl_core.training.distributed import add_up, num_processes
from samcl_core.training.draws import stream_of
from samcl_core.training.enlarged_loss import enlarged_mask_loss
from samcl_core.training.losses import LossParts
from samcl_core.training.point_loss import PointLossParts, point_loss
from samcl_core.training.precision import precision_on

__all__ = ["Extra", "Forward", "Updates", "batch_loss"]

_PARTS = {"samcl": ("focal", "dice", "iou", "total"), "cosam": ("bce", "dice", "total")}

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

        Where a batch is taken in parts (accumulation, several processes) each part's term is weighted by
        ``batch.share``. So it has to be independent of the batch or a mean over its images; whatever is drawn for a
        batch is drawn for ``batch.num_images`` images, and ``batch.rows`` of it belong to the part.

        Args:
            tensors: the module in training, on the training device.
            batch: the step's batch or a part of it; prefix, prompts and masks are on the training device.
            found: what the module in training answers.
            forward: answers of other tensors of the same adapter: ``forward(tensors, batch)``.
        """
        return None

    def after_backward(self, tensors: ModuleTensors) -> None:
        """Called between the gradients of the whole batch and the update, for strategies that freeze a part."""


def batch_loss(found: Masks, batch: Batch, options: TrainParams) -> LossParts | PointLossParts:
    """The training loss of one batch, before anything that a strategy adds; all on one device.

    Of a part of a batch it is what the part adds to the loss of the whole batch.
    """
    if options.loss == "cosam":
        rng = stream_of("samcl.train.loss", batch.seed, batch.step)
        return point_loss(found.logits, batch.masks, rng, first=batch.first, share=batch.share)
    reduction, upsampling = options.loss_reduction or "mean", options.upsampling or "bilinear"
    return enlarged_mask_loss(found.logits, batch.masks, found.iou, reduction, upsampling, batch.share)


class Updates:
    """The updates of one training.

    The loss of a batch is a sum over images, or a mean, which is a sum once it is weighted by the share of the images.
    So its gradient is the sum of the gradients of its parts, within rounding: those that this process computes one
    after the other, and those of the other processes.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        tensors: ModuleTensors,
        options: TrainParams,
        optimizer: torch.optim.Optimizer,
        extra: Extra | None = None,
    ) -> None:
        self._backbone, self._adapter, self._tensors, self._options = backbone, adapter, tensors, options
        self._optimizer, self._extra = optimizer, extra or Extra()
        self._dtype = precision_on(options.precision or "auto", backbone.device)
        self._names = _PARTS[options.loss]
        # Small gradients vanish in float16; in the other formats this scaler does nothing.
        self.scaler = torch.amp.GradScaler(backbone.device.type, enabled=self._dtype == torch.float16)

    def __call__(self, parts: Sequence[Batch]) -> dict[str, float]:
        """Make one update from this process's parts of a batch; the loss of the whole batch before it, by its terms.

        Raises:
            TrainingError: the GPU's memory is too small for a part, or another process has ended.
        """
        device = self._backbone.device
        self._optimizer.zero_grad()
        # The terms, the penalty, and how many parts have one.
        values = torch.zeros(len(self._names) + 2, device=device)
        try:
            for part in parts:
                values += self._backward(part.to(device))
        except torch.OutOfMemoryError as exc:
            raise self._out_of_memory(max(map(len, parts)), exc) from exc
        values = self._summed(values)
        self.scaler.unscale_(self._optimizer)
        self._extra.after_backward(self._tensors)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        *terms, penalty, num_penalties = values.tolist()
        found = dict(zip(self._names, terms, strict=True))
        return found | {"penalty": penalty, "total": found["total"] + penalty} if num_penalties else found

    def _forward(self, tensors: ModuleTensors, batch: Batch) -> Masks:
        hooks = self._adapter.hooks(tensors, batch.prompts)
        with torch.autocast(self._backbone.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._backbone.suffix(batch.prefix, batch.prompts, hooks, training=True)

    def _backward(self, batch: Batch) -> Tensor:
        found = self._forward(self._tensors, batch)
        loss = batch_loss(found, batch, self._options)
        penalty = self._extra.penalty(self._tensors, batch, found, self._forward)
        terms = [getattr(loss, name).detach() for name in self._names]
        if penalty is None:
            self.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
            return torch.stack([*terms, torch.zeros_like(terms[0]), torch.zeros_like(terms[0])])
        penalty = batch.share * penalty
        self.scaler.scale(loss.total + penalty).backward()  # type: ignore[no-untyped-call]
        return torch.stack([*terms, penalty.detach().to(terms[0]), torch.ones_like(terms[0])])

    def _summed(self, values: Tensor) -> Tensor:
        """``values`` and the gradients, summed over the processes; no gradient is where no process has one."""
        if num_processes() == 1:
            return values
        tensors = list(self._tensors.values())
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        has_gradient = torch.tensor([float(tensor.grad is not None) for tensor in tensors], device=values.device)
        flat = add_up(torch.cat([*(gradient.flatten() for gradient in gradients), has_gradient, values]))
        sizes = [*(tensor.numel() for tensor in tensors), len(tensors), len(values)]
        *sums, has_gradient, values = torch.split(flat, sizes)
        for tensor, total, is_there in zip(tensors, sums, has_gradient.tolist(), strict=True):
            tensor.grad = total.view_as(tensor).clone() if is_there else None
        return values

    def _out_of_memory(self, num_images: int, exc: Exception) -> TrainingError:
        accumulate, batch_size = self._options.accumulate, self._options.batch_size
        fewer = f"train.accumulate: {2 * accumulate}" if num_images > 1 else "train.precision: bfloat16"
        return TrainingError(
            f"the memory of {self._backbone.device} is too small for {num_images} image(s) at a time "
            f"(train.batch_size {batch_size}, train.accumulate {accumulate}): {str(exc).splitlines()[0]}",
            hint=f"set {fewer} in params.yaml (the result stays the same within rounding), or a smaller batch_size",
        )
