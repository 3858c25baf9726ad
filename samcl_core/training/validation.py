"""How good a module in training is on validation samples, for the choice of the epoch. Test samples never come here."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones.base import Backbone
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.evaluation.metrics import iou
from samcl_core.training.data import MaskCache, prompts_of
from samcl_core.training.distributed import gathered, num_processes, rank
from samcl_core.training.draw_prompts import box_prompts
from samcl_core.training.losses import resize_logits
from samcl_core.training.prefix_cache import PrefixCache

__all__ = ["val_iou"]


@torch.no_grad()
def val_iou(
    backbone: Backbone,
    adapter: Adapter,
    tensors: ModuleTensors,
    cache: PrefixCache,
    masks: MaskCache,
    samples: Sequence[Sample],
    options: TrainParams,
) -> float:
    """Mean IoU of one module on ``samples`` (at least one), at the size of ``masks``, in 0..1.

    Of several processes each scores a part, and all get the mean over everything.
    """
    total, size, mine = 0.0, options.batch_size, samples[rank() :: num_processes()]
    for chosen in (mine[start : start + size] for start in range(0, len(mine), size)):
        # CoSAM trains with three kinds of prompt and validates with the box.
        prompts = (box_prompts if options.prompts == "cosam" else prompts_of)(chosen).to(backbone.device)
        found = backbone.suffix(cache.get(chosen).to(backbone.device), prompts, adapter.hooks(tensors, prompts))
        logits = resize_logits(found.logits, masks.size_px, options.upsampling or "bilinear")
        total += float(iou(logits[:, 0], masks.get(chosen).bool().to(logits.device)).sum())
    return sum(gathered(total)) / len(samples)
