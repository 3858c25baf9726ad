"""Backbones: frozen promptable segmenters, split into a prefix and a suffix that modules adapt."""

from samcl_core.backbones.base import (
    FRAME_PX,
    AdapterSite,
    Backbone,
    Decoding,
    Hooks,
    Masks,
    Prefix,
    PrefixPlan,
    Prompts,
    SuffixHooks,
)
from samcl_core.backbones.build import load_backbone, register_backbone, registered_backbones, resolve_device
from samcl_core.backbones.checkpoints import KNOWN, Checkpoint, checkpoint_dir, fetch, is_present, locate
from samcl_core.backbones.frozen import weights_digest
from samcl_core.backbones.nano import NanoConfig, load_nano, save_nano, tiny_backbone
from samcl_core.backbones.sam import SamBackbone
from samcl_core.backbones.sam2 import Sam2Backbone, tiny_sam2_backbone
from samcl_core.backbones.tokens import TokenBackbone

__all__ = [
    "FRAME_PX",
    "KNOWN",
    "AdapterSite",
    "Backbone",
    "Checkpoint",
    "Decoding",
    "Hooks",
    "Masks",
    "NanoConfig",
    "Prefix",
    "PrefixPlan",
    "Prompts",
    "Sam2Backbone",
    "SamBackbone",
    "SuffixHooks",
    "TokenBackbone",
    "checkpoint_dir",
    "fetch",
    "is_present",
    "load_backbone",
    "load_nano",
    "locate",
    "register_backbone",
    "registered_backbones",
    "resolve_device",
    "save_nano",
    "tiny_backbone",
    "tiny_sam2_backbone",
    "weights_digest",
]
