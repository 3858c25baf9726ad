"""Training of one module: the prefix cache, losses, schedules, checkpoints and the loop."""

from __future__ import annotations

from samcl_core.training.batches import Batch
from samcl_core.training.checkpoint import clear_checkpoint
from samcl_core.training.data import MaskCache, masks_of, prompts_of
from samcl_core.training.draw_prompts import box_prompts, cosam_prompts
from samcl_core.training.loop import TrainResult, train_module
from samcl_core.training.losses import LossParts, mask_loss, resize_logits
from samcl_core.training.point_loss import PointLossParts, point_loss
from samcl_core.training.prefix_cache import PrefixCache
from samcl_core.training.schedule import learning_rate
from samcl_core.training.step import Extra, Forward, Updates, batch_loss

__all__ = [
    "Batch",
    "Extra",
    "Forward",
    "LossParts",
    "MaskCache",
    "PointLossParts",
    "PrefixCache",
    "TrainResult",
    "Updates",
    "batch_loss",
    "box_prompts",
    "clear_checkpoint",
    "cosam_prompts",
    "learning_rate",
    "mask_loss",
    "masks_of",
    "point_loss",
    "prompts_of",
    "resize_logits",
    "train_module",
]
