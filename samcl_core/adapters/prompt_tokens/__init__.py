"""Prompt tokens: learnt keys and values beside the image's own."""

from samcl_core.adapters.base import register_adapter
from samcl_core.adapters.prompt_tokens.build import PromptTokens, build_prompt_tokens
from samcl_core.adapters.prompt_tokens.config import PromptTokensConfig
from samcl_core.adapters.prompt_tokens.layer import PromptTokenHooks

__all__ = ["PromptTokenHooks", "PromptTokens", "PromptTokensConfig", "build_prompt_tokens"]

register_adapter(PromptTokens.kind, build_prompt_tokens)
