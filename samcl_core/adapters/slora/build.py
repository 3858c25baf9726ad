"""SLoRA as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.options import options_of
from samcl_core.adapters.rows import start_linear
from samcl_core.adapters.slora.config import SloraConfig
from samcl_core.adapters.slora.layer import SloraHooks
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts

__all__ = ["Slora", "build_slora"]


class Slora:
    """The AugModule of SAMCL (arXiv 2412.05012) without what it makes of the prompt.

    50,030 weights on SAM ViT-B at rank 10. ``A`` serves all adapted blocks; ``B_000`` belongs to the first of them.
    """

    kind = "slora"
    plan = PrefixPlan()

    def __init__(self, site: AdapterSite, config: SloraConfig) -> None:
        self.site = site
        self.config = config

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values; ``build_adapter(kind, site, **parameters)`` builds the same adapter."""
        return self.config.as_json()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in a fixed order."""
        rank, dim = self.config.rank, self.site.dim
        shapes: dict[str, tuple[int, ...]] = {"A.weight": (rank, dim), "A.bias": (rank,)}
        for position in range(len(self.site.blocks)):
            shapes |= {f"B_{position:03d}.weight": (dim, rank), f"B_{position:03d}.bias": (dim,)}
            shapes |= {f"norm_{position:03d}.weight": (rank,), f"norm_{position:03d}.bias": (rank,)}
        return shapes

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes.

        Norms start at 1 and 0, ``A`` as torch starts a ``Linear``, ``B`` at zero: the module changes nothing yet.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = self.null()
        start_linear(tensors["A.weight"], generator)
        start_linear(tensors["A.bias"], generator, self.site.dim)
        for name, tensor in tensors.items():
            if name.startswith("norm") and name.endswith(".weight"):
                tensor.fill_(1.0)
        return tensors

    def null(self) -> ModuleTensors:
        """float32 zeros: as a module they change nothing, bit for bit."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> SloraHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        return SloraHooks(gathered(self, tensors, prompts, index), len(prompts), self.site)


def build_slora(site: AdapterSite, **parameters: Any) -> Slora:
    """SLoRA for ``site``; ``parameters`` are the fields of ``SloraConfig``.

    Raises:
        ValueError: an unknown option, or a value outside its choices.
    """
    return Slora(site, options_of(SloraConfig, parameters))
