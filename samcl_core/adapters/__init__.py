"""Adapters: what a module is made of, and what it does inside the frozen suffix of a backbone."""

from samcl_core.adapters.augmodule import AugModule, AugModuleConfig, build_augmodule
from samcl_core.adapters.base import (
    Adapter,
    ModuleTensors,
    build_adapter,
    gathered,
    register_adapter,
    registered_adapters,
)
from samcl_core.adapters.hq_decoder import HqDecoder, HqDecoderConfig, HqDecoderHooks, build_hq_decoder
from samcl_core.adapters.lora import Lora, LoraConfig, LoraHooks, build_lora
from samcl_core.adapters.prompt_tokens import PromptTokenHooks, PromptTokens, PromptTokensConfig, build_prompt_tokens

__all__ = [
    "Adapter",
    "AugModule",
    "AugModuleConfig",
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
    "build_adapter",
    "build_augmodule",
    "build_hq_decoder",
    "build_lora",
    "build_prompt_tokens",
    "gathered",
    "register_adapter",
    "registered_adapters",
]
