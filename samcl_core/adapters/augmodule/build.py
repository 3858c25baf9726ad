"""The AugModule as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.augmodule.config import AugModuleConfig
from samcl_core.adapters.augmodule.layer import AugModuleHooks
from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts

__all__ = ["AugModule", "build_augmodule"]


class AugModule:
    """One tiny module per domain: 61,524 weights on SAM ViT-B at rank 10, 21,036 on SAM 2.1 tiny.

    Tensors have the names of the released checkpoints; ``B_000`` belongs to the first adapted block. On a backbone
    without ``AdapterSite.neck_dim`` there is no ``extra.upward``.
    """

    kind = "augmodule"
    plan = PrefixPlan()

    def __init__(self, site: AdapterSite, config: AugModuleConfig) -> None:
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
            for norm in ("norm1", "norm2"):
                shapes |= {f"{norm}_{position:03d}.weight": (rank,), f"{norm}_{position:03d}.bias": (rank,)}
        shapes |= {"extra.layer.weight": (rank, rank), "extra.layer.bias": (rank,)}
        shapes |= {"extra.norm.weight": (rank,), "extra.norm.bias": (rank,)}
        if self.site.neck_dim is not None:
            shapes |= {"extra.upward.weight": (dim, rank), "extra.upward.bias": (dim,)}
            shapes |= {"extra.upward_.weight": (self.site.neck_dim, rank), "extra.upward_.bias": (self.site.neck_dim,)}
        return shapes

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes.

        Norms start at 1 and 0; ``A`` and ``extra.layer`` as torch starts a ``Linear``: uniform within
        1 / sqrt(inputs); ``B`` and ``extra.upward`` at zero, so that the module changes nothing yet.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = self.null()
        for layer in ("A", "extra.layer"):
            bound = 1 / math.sqrt(tensors[f"{layer}.weight"].shape[1])
            for part in ("weight", "bias"):
                tensors[f"{layer}.{part}"].uniform_(-bound, bound, generator=generator)
        for name, tensor in tensors.items():
            if "norm" in name and name.endswith(".weight"):
                tensor.fill_(1.0)
        return tensors

    def null(self) -> ModuleTensors:
        """float32 zeros: as a module they change nothing, bit for bit."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> AugModuleHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        return AugModuleHooks(gathered(self, tensors, prompts, index), prompts, self.site, self.config)


def build_augmodule(site: AdapterSite, **parameters: Any) -> AugModule:
    """An AugModule for ``site``; ``parameters`` are the fields of ``AugModuleConfig``.

    Raises:
        ValueError: an unknown option, or a value outside its choices.
    """
    return AugModule(site, AugModuleConfig.of(parameters))
