"""AugModule (SAMCL): one prompt-fed low-rank module per domain."""

from samcl_core.adapters.augmodule.build import AugModule, build_augmodule
from samcl_core.adapters.augmodule.config import AugModuleConfig
from samcl_core.adapters.augmodule.heatmap import HEATMAP_CELLS, render_heatmap
from samcl_core.adapters.augmodule.layer import AugModuleHooks
from samcl_core.adapters.base import register_adapter

__all__ = ["HEATMAP_CELLS", "AugModule", "AugModuleConfig", "AugModuleHooks", "build_augmodule", "render_heatmap"]

register_adapter(AugModule.kind, build_augmodule)
