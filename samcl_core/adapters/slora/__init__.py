"""SLoRA (SAMCL): low-rank additions to attention with one shared way down."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.slora.build import Slora, build_slora
from samcl_core.adapters.slora.config import SloraConfig
from samcl_core.adapters.slora.layer import SloraHooks

__all__ = ["Slora", "SloraConfig", "SloraHooks", "build_slora"]

register_adapter(Slora.kind, build_slora)
