"""What tuned decoders do to one batch: each module's rows pass through the decoder with its own weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from samcl_core.backbones.base import Decoding, Hooks, Masks, PrefixPlan

__all__ = ["DECODER_PLAN", "DecoderHooks"]

DECODER_PLAN = PrefixPlan(split="encoder")


class DecoderHooks(Hooks):
    """``SuffixHooks`` of one batch: one pass of the decoder for each distinct module in it.

    Args:
        deltas: by the decoder's own names, what is added to its frozen weights; M modules' stacked ones with ``index``.
        index: (B,) int64, each sample's module; ``None`` where all have the one module.
    """

    plan = DECODER_PLAN

    def __init__(self, deltas: Mapping[str, Tensor], index: Tensor | None = None) -> None:
        self._deltas = deltas
        self._index = index
        self._skeleton: _Skeleton | None = None

    def decode(self, call: Decoding) -> Masks:
        """Masks of one call; rows of a module whose deltas are zeros equal the frozen answer."""
        if self._index is None:
            return self._run(call, self._deltas)
        chosen = self._index[call.rows]
        modules: list[int] = sorted(set(chosen.tolist()))
        if len(modules) == 1:
            return self._run(call, self._row(modules[0]))
        taken = [(chosen == module).nonzero()[:, 0] for module in modules]
        parts = [self._run(call[rows], self._row(module)) for rows, module in zip(taken, modules, strict=True)]
        back = torch.cat(taken).argsort()
        return Masks(torch.cat([part.logits for part in parts])[back], torch.cat([part.iou for part in parts])[back])

    def _row(self, module: int) -> dict[str, Tensor]:
        return {name: delta[module] for name, delta in self._deltas.items()}

    def _run(self, call: Decoding, deltas: Mapping[str, Tensor]) -> Masks:
        frozen = dict(call.decoder.named_parameters())
        weights = {f"decoder.{name}": frozen[name] + delta for name, delta in deltas.items()}
        if self._skeleton is None:
            self._skeleton = _Skeleton(call.decoder)
        masks: Masks = functional_call(self._skeleton, weights, (call,))
        return masks


class _Skeleton(nn.Module):
    """A decoder's structure around its own frozen tensors.

    ``functional_call`` puts weights into the modules themselves while it runs: done to the shared decoder, another
    thread would answer with this thread's module.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = _twin(decoder)

    def forward(self, call: Decoding) -> Masks:
        return call.run(call, self.decoder)


def _twin(module: nn.Module) -> nn.Module:
    """The same module with places of its own for the same tensors, in a tenth of a deep copy's time."""
    twin = copy.copy(module)
    children = {name: child if child is None else _twin(child) for name, child in module._modules.items()}
    own = {"_parameters": dict(module._parameters), "_buffers": dict(module._buffers), "_modules": children}
    twin.__dict__.update(own)
    return twin
