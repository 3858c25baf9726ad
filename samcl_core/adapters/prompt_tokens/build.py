"""Prompt tokens as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.options import options_of
from samcl_core.adapters.prompt_tokens.config import PromptTokensConfig
from samcl_core.adapters.prompt_tokens.layer import PromptTokenHooks
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts

__all__ = ["PromptTokens", "build_prompt_tokens"]

_STD = 0.02


class PromptTokens:
    """Learnt keys and values beside the image's own in every adapted block (arXiv 2101.00190, arXiv 2203.12119).

    61,440 weights on SAM ViT-B for eight tokens. ``keys_000`` belongs to the first adapted block.
    """

    kind = "prompt_tokens"
    plan = PrefixPlan()

    def __init__(self, site: AdapterSite, config: PromptTokensConfig) -> None:
        self.site = site
        self.config = config

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values; ``build_adapter(kind, site, **parameters)`` builds the same adapter."""
        return self.config.as_json()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in a fixed order."""
        shape = (self.config.num_tokens, self.site.dim)
        return {f"{part}_{i:03d}": shape for i in range(len(self.site.blocks)) for part in ("keys", "values")}

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes: normal, standard deviation 0.02.

        Such a module changes a little: a query spends some of its attention on the new tokens, whatever they say.
        """
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) * _STD for name, shape in self.shapes().items()}

    def null(self) -> ModuleTensors:
        """float32 zeros, which are no tokens: masks of the plain backbone within rounding."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> PromptTokenHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        rows = gathered(self, tensors, prompts, index)
        keys, values = (
            {
                block: rows[f"{part}_{i:03d}"] if index is not None else rows[f"{part}_{i:03d}"][None]
                for i, block in enumerate(self.site.blocks)
            }
            for part in ("keys", "values")
        )
        return PromptTokenHooks(keys, values)


def build_prompt_tokens(site: AdapterSite, **parameters: Any) -> PromptTokens:
    """Prompt tokens for ``site``; ``parameters`` are the fields of ``PromptTokensConfig``.

    Raises:
        ValueError: an unknown option, or a value outside its choices.
    """
    return PromptTokens(site, options_of(PromptTokensConfig, parameters))
