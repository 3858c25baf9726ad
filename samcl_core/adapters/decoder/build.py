"""Decoder tuning as an adapter: which weights of the mask decoder, new modules, hooks for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, check_tensors
from samcl_core.adapters.decoder.layer import DECODER_PLAN, DecoderHooks
from samcl_core.backbones.base import AdapterSite, Prompts

__all__ = ["DecoderTuning", "build_decoder_tuning"]

# No loss on mask token 0 reaches these: the other tokens' kernels, SAM 2's score of presence, and SAM 2's convolutions
# of high-resolution features, which the prefix holds.
_APART = (
    *(f"output_hypernetworks_mlps.{token}." for token in (1, 2, 3)),
    "pred_obj_score_head.",
    "conv_s0.",
    "conv_s1.",
)


class DecoderTuning:
    """The mask decoder's weights, as differences to the frozen ones; everything before it stays plain.

    3.6 million weights on SAM ViT-B. Tensors have the names of the official decoder.
    """

    kind = "decoder"
    plan = DECODER_PLAN

    def __init__(self, site: AdapterSite) -> None:
        self.site = site

    def parameters(self) -> dict[str, Any]:
        """No settings."""
        return {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in the order of the decoder."""
        return {name: shape for name, shape in self.site.decoder.items() if not name.startswith(_APART)}

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 zeros, whatever the ``seed``: training starts at the frozen decoder."""
        return self.null()

    def null(self) -> ModuleTensors:
        """float32 zeros: as a module they change nothing, bit for bit."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> DecoderHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        check_tensors(self, tensors, prompts, index)
        return DecoderHooks({name: tensors[name] for name in self.shapes()}, index)


def build_decoder_tuning(site: AdapterSite, **parameters: Any) -> DecoderTuning:
    """Decoder tuning for ``site``.

    Raises:
        ValueError: there are options, or the backbone does not say what its decoder is made of.
    """
    if given := sorted(name for name, value in parameters.items() if value is not None):
        raise ValueError(f"unknown options {given}, expected none")
    if not site.decoder:
        raise ValueError("the backbone names 0 weights of its mask decoder, expected at least 1")
    return DecoderTuning(site)
