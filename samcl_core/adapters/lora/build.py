"""LoRA as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.lora.config import LoraConfig
from samcl_core.adapters.lora.layer import LoraHooks
from samcl_core.adapters.options import options_of
from samcl_core.adapters.rows import start_linear
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts

__all__ = ["Lora", "build_lora"]


class Lora:
    """Low-rank updates of the q and v projections of the adapted blocks (Hu et al., arXiv 2106.09685).

    61,440 weights on SAM ViT-B at rank 4. ``A_q_000`` belongs to the first adapted block.
    """

    kind = "lora"
    plan = PrefixPlan()

    def __init__(self, site: AdapterSite, config: LoraConfig) -> None:
        self.site = site
        self.config = config

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values; ``build_adapter(kind, site, **parameters)`` builds the same adapter."""
        return self.config.as_json()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in a fixed order."""
        rank, dim = self.config.rank, self.site.dim
        shapes: dict[str, tuple[int, ...]] = {}
        for position in range(len(self.site.blocks)):
            for which in ("q", "v"):
                shapes |= {f"A_{which}_{position:03d}": (rank, dim), f"B_{which}_{position:03d}": (dim, rank)}
        return shapes

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes.

        ``A`` as torch starts a ``Linear``, uniform within 1 / sqrt(inputs), as the released code does; ``B`` at zero.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = self.null()
        for name, tensor in tensors.items():
            if name.startswith("A_"):
                start_linear(tensor, generator)
        return tensors

    def null(self) -> ModuleTensors:
        """float32 zeros: masks of the plain backbone within rounding."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> LoraHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        return LoraHooks(gathered(self, tensors, prompts, index), self.site, self.config.scale)


def build_lora(site: AdapterSite, **parameters: Any) -> Lora:
    """LoRA for ``site``; ``parameters`` are the fields of ``LoraConfig``.

    Raises:
        ValueError: an unknown option, or a value outside its choices.
    """
    return Lora(site, options_of(LoraConfig, parameters))
