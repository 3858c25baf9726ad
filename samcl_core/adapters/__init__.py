"""Adapters: what a module is made of, and what it does inside the frozen suffix of a backbone."""

from samcl_core.adapters.augmodule import AugModule, AugModuleConfig, build_augmodule
from samcl_core.adapters.base import (
    Adapter,
    ModuleTensors,
    build_adapter,
    check_tensors,
    gathered,
    register_adapter,
    registered_adapters,
)
from samcl_core.adapters.decoder import DecoderHooks, DecoderTuning, build_decoder_tuning
from samcl_core.adapters.hq_decoder import HqDecoder, HqDecoderConfig, HqDecoderHooks, build_hq_decoder
from samcl_core.adapters.lora import Lora, LoraConfig, LoraHooks, build_lora
from samcl_core.adapters.prompt_tokens import PromptTokenHooks, PromptTokens, PromptTokensConfig, build_prompt_tokens
from samcl_core.adapters.sam_adapter import SamAdapter, SamAdapterConfig, build_sam_adapter
from samcl_core.adapters.slora import Slora, SloraConfig, build_slora

__all__ = [
    "Adapter",
    "AugModule",
    "AugModuleConfig",
    "DecoderHooks",
    "DecoderTuning",
    "HqDecoder",
    "HqDecoderConfig",
    "HqDecoderHooks",
    "Lora",
    "LoraConfig",
    "LoraHooks",
    "ModuleTensors",
    "PromptTokenHooks",
    "PromptTokens",
    "PromptTokensConfig",
    "SamAdapter",
    "SamAdapterConfig",
    "Slora",
    "SloraConfig",
    "build_adapter",
    "build_augmodule",
    "build_decoder_tuning",
    "build_hq_decoder",
    "build_lora",
    "build_prompt_tokens",
    "build_sam_adapter",
    "build_slora",
    "check_tensors",
    "gathered",
    "register_adapter",
    "registered_adapters",
]
