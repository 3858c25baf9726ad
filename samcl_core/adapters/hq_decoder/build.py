"""The HQ decoder as an adapter: names and shapes of its tensors, new modules, hooks for a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.adapters.hq_decoder.config import HqDecoderConfig
from samcl_core.adapters.hq_decoder.layer import HqDecoderHooks
from samcl_core.adapters.hq_decoder.weights import read_weights
from samcl_core.adapters.options import options_of
from samcl_core.backbones.base import AdapterSite, PrefixPlan, Prompts

__all__ = ["HqDecoder", "build_hq_decoder"]

_SIDE = "first_global"


class HqDecoder:
    """One more output token in SAM's mask decoder, and three small branches that give it sharper features (Ke et al.,
    *Segment Anything in High Quality*, arXiv 2306.01567, section 3.2): 1,071,104 weights on SAM ViT-B.

    Encoder and decoder stay frozen, so the encoder runs once an image. Tensors have the names of the released
    checkpoints.
    """

    kind = "hq_decoder"
    plan = PrefixPlan("encoder", (_SIDE,))

    def __init__(self, site: AdapterSite, config: HqDecoderConfig) -> None:
        self.site = site
        self.config = config

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values; ``build_adapter(kind, site, **parameters)`` builds the same adapter."""
        return self.config.as_json()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in a fixed order."""
        vit, wide = self.site.dim, self.site.decoder_dim
        half, slim = wide // 4, wide // 8
        shapes: dict[str, tuple[int, ...]] = {"hf_token.weight": (1, wide)}
        for layer, outputs in enumerate((wide, wide, slim)):
            shapes |= {f"hf_mlp.layers.{layer}.weight": (outputs, wide), f"hf_mlp.layers.{layer}.bias": (outputs,)}
        # Transposed convolutions have (inputs, outputs, 2, 2), convolutions (outputs, inputs, 3, 3).
        for branch, first, middle, last in (
            ("compress_vit_feat", (vit, wide, 2, 2), wide, (wide, slim, 2, 2)),
            ("embedding_encoder", (wide, half, 2, 2), half, (half, slim, 2, 2)),
            ("embedding_maskfeature", (half, slim, 3, 3), half, (slim, half, 3, 3)),
        ):
            shapes |= {f"{branch}.0.weight": first, f"{branch}.0.bias": (middle,)}
            shapes |= {f"{branch}.1.weight": (middle,), f"{branch}.1.bias": (middle,)}
            shapes |= {f"{branch}.3.weight": last, f"{branch}.3.bias": (slim,)}
        return shapes

    def fresh(self, seed: int) -> ModuleTensors:
        """float32 tensors of a new module on the CPU, same seed same bytes.

        With ``weights`` they are the file's. Otherwise they start as the released code's do, as torch starts each
        layer, except that the last layer of ``hf_mlp`` starts at zero: the HQ logits are zero, and the sum differs
        from plain SAM only by what one more token does to the attention of the others.

        Raises:
            CheckpointMissing: there is no file ``weights``.
            CheckpointMismatch: it is not the file that is meant, or is for another backbone.
            UnsafeFileError: it holds more than tensors.
        """
        if self.config.weights is not None:
            return read_weights(Path(self.config.weights).expanduser(), str(self.config.sha256), self.shapes())
        generator = torch.Generator().manual_seed(seed)
        tensors = self.null()
        tensors["hf_token.weight"].normal_(generator=generator)
        for name, tensor in tensors.items():
            layer, _, part = name.rpartition(".")
            weight = tensors[f"{layer}.weight"]
            if weight.dim() == 1:
                tensor.fill_(1.0 if part == "weight" else 0.0)
            elif layer not in ("hf_token", "hf_mlp.layers.2"):
                bound = 1 / math.sqrt(weight[0].numel())
                tensor.uniform_(-bound, bound, generator=generator)
        return tensors

    def null(self) -> ModuleTensors:
        """float32 zeros, plain SAM: such rows go through the frozen decoder without the extra token."""
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> HqDecoderHooks:
        """What modules do to one batch; ``index`` (B,) picks each sample's row of stacked ``tensors``.

        Raises:
            BankError: tensors are missing or have other shapes than this adapter's.
            PromptError: ``index`` has another length than the prompts.
        """
        return HqDecoderHooks(self, tensors, prompts, index)


def build_hq_decoder(site: AdapterSite, **parameters: Any) -> HqDecoder:
    """An HQ decoder for ``site``; ``parameters`` are the fields of ``HqDecoderConfig``.

    Raises:
        ValueError: the backbone is not a SAM, an unknown option, or a value outside its choices.
    """
    if _SIDE not in site.sides or site.decoder_dim % 8:
        raise ValueError(
            f"it needs the features {_SIDE!r} of SAM's encoder, the backbone gives {sorted(site.sides) or 'none'}; "
            "expected backbone sam_vit_b, sam_vit_l, sam_vit_h or sam_nano"
        )
    return HqDecoder(site, options_of(HqDecoderConfig, parameters))
