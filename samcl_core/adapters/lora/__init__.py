"""LoRA: low-rank updates of queries and values."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.lora.build import Lora, build_lora
from samcl_core.adapters.lora.config import LoraConfig
from samcl_core.adapters.lora.layer import LoraHooks

__all__ = ["Lora", "LoraConfig", "LoraHooks", "build_lora"]

register_adapter(Lora.kind, build_lora)
