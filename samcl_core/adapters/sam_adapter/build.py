"""The SAM-Adapter as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.options import options_of
from samcl_core.adapters.rows import start_linear
from samcl_core.adapters.sam_adapter.config import SamAdapterConfig
from samcl_core.adapters.sam_adapter.layer import SAM_ADAPTER_PLAN, SamAdapterHooks
from samcl_core.backbones.base import AdapterSite, Prompts

__all__ = ["SamAdapter", "build_sam_adapter"]


class SamAdapter:
    """SAM-Adapter (Chen et al., arXiv 2304.09148) on the adapted blocks; needs a backbone with side features (SAM).

    59,112 weights on SAM ViT-B. ``tune_000`` belongs to the first adapted block; ``up`` serves all of them.
    """

    kind = "sam_adapter"
    plan = SAM_ADAPTER_PLAN

    def __init__(self, site: AdapterSite, config: SamAdapterConfig) -> None:
        self.plan.check(site)
        self.site = site
        self.config = config

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values; ``build_adapter(kind, site, **parameters)`` builds the same adapter."""
        return self.config.as_json()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in a fixed order."""
        dim = self.site.dim
        hidden = max(1, dim // self.config.reduction)
        channels, size, _ = self.site.sides["high_frequency"]
        patch = size // self.site.grid
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.weight": (hidden, dim),
            "embedding.bias": (hidden,),
            "frequency.weight": (hidden, channels, patch, patch),
            "frequency.bias": (hidden,),
        }
        for position in range(len(self.site.blocks)):
            shapes |= {f"tune_{position:03d}.weight": (hidden, hidden), f"tune_{position:03d}.bias": (hidden,)}
        return shapes | {"up.weight": (dim, hidden), "up.bias": (dim,)}

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes.

        ``up`` at zero, so that the module changes nothing yet; everything else as torch starts it: uniform within
        1 / sqrt(inputs).
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = self.null()
        for layer in [name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and name[0] != "u"]:
            num_inputs = math.prod(tensors[f"{layer}.weight"].shape[1:])
            for part in ("weight", "bias"):
                start_linear(tensors[f"{layer}.{part}"], generator, num_inputs)
        return tensors

    def null(self) -> ModuleTensors:
        """float32 zeros: as a module they change nothing, bit for bit."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> SamAdapterHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        return SamAdapterHooks(gathered(self, tensors, prompts, index), self.site, is_stacked=index is not None)


def build_sam_adapter(site: AdapterSite, **parameters: Any) -> SamAdapter:
    """A SAM-Adapter for ``site``; ``parameters`` are the fields of ``SamAdapterConfig``.

    Raises:
        ValueError: an unknown option, or a value outside its choices.
        ConfigError: the backbone has no side features (SAM 2).
    """
    return SamAdapter(site, options_of(SamAdapterConfig, parameters))
