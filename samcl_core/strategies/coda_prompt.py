"""CODA-Prompt: each image's prompt is a sum of components, weighted by how its attended query meets their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.adapters.options import whole_number
from samcl_core.backbones.base import AdapterSite
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.checks import check_weight
from samcl_core.strategies.prompt_pool import PoolAdapter, PoolPenalty, PromptPool, by_block, grown
from samcl_core.training import Extra

__all__ = ["CodaPrompt"]

_PARTS = ("keys", "attention", "prompts")


@dataclass(frozen=True)
class CodaPrompt(PromptPool):
    """CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218).

    In each block the prompt of a query q is ``sum_m cos(q * A_m, K_m) P_m`` with components P, keys
    K and attention vectors A. Every domain adds components; earlier ones stay in the sum and are frozen.
    Training adds ``ortho_weight`` times how far keys, attention vectors and components are from orthonormal ones, old
    and new together.

    What differs: the paper divides a fixed number of components by the known number of tasks; here a domain brings its
    own number, as the length of a stream is not known. New components start orthonormal to each other and to the
    earlier ones, as in the released code, while there is room.

    Attributes:
        num_components: new ones a domain: 10, the paper's 100 for ten tasks.
        length: keys, and as many values, of a component: 4, the halves of the paper's prompts of length 8.
        ortho_weight: lambda, 0.1 in the paper. The penalty is a mean over the Gram matrices, as in the released code,
            whose later version starts components as here and sets the weight to 0.
    """

    num_components: int = 10
    length: int = 4
    ortho_weight: float = 0.1

    name: ClassVar[str] = "coda_prompt"
    title: ClassVar[str] = "CODA-Prompt"
    reference: ClassVar[str] = "arXiv 2211.13218"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("num_components", self.num_components, 10_000)
        whole_number("length", self.length, 1024)
        check_weight("ortho_weight", self.ortho_weight)

    def pool(self, earlier: ModuleTensors, site: AdapterSite) -> PoolAdapter:
        """New components: keys and attention vectors (blocks, M, C), prompts (blocks, M, 2, L, C)."""
        shapes: dict[str, tuple[int, ...]] = {
            "keys": (len(site.blocks), self.num_components, site.dim),
            "attention": (len(site.blocks), self.num_components, site.dim),
            "prompts": (len(site.blocks), self.num_components, 2, self.length, site.dim),
        }
        return PoolAdapter(
            self.name,
            site,
            self.settings(),
            shapes,
            serve=lambda tensors, query: self.serve(_joined(earlier, tensors), query, site),
            start=lambda seed: _start(earlier, shapes, seed),
            earlier=earlier,
        )

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra:
        """New components stay orthogonal to each other and to the earlier ones."""
        assert isinstance(context.adapter, PoolAdapter)
        earlier = context.adapter.earlier
        return PoolPenalty(self.ortho_weight, lambda tensors, query: _deviation(_joined(earlier, tensors)))

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """All components, the earlier ones as they were."""
        return State(tuple(task.name for task in tasks), grown(state, model, dict.fromkeys(_PARTS, 1)))

    def serve(self, tensors: Mapping[str, Tensor], query: Tensor, site: AdapterSite) -> Mapping[int, Tensor]:
        """The weighted sums: one prompt an image and block."""
        prompts = tensors["prompts"]
        mixed = self.weights(tensors, query) @ prompts.flatten(2)
        return by_block(site.blocks, mixed.reshape(*mixed.shape[:2], *prompts.shape[2:]).transpose(1, 2), self.gain)

    def weights(self, tensors: Mapping[str, Tensor], query: Tensor) -> Tensor:
        """(blocks, B, M): cos(q * A, K) for queries (B, C).

        Written as products of matrices, which never hold the (blocks, B, M, C) attended queries.
        """
        attention, keys = tensors["attention"], F.normalize(tensors["keys"], dim=-1)
        squares = query.square() @ attention.square().mT
        return (query @ (attention * keys).mT) * squares.clamp_min(1e-24).rsqrt()


def _joined(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([earlier[name], new[name]], 1) if earlier else new[name] for name in _PARTS}


def _deviation(tensors: Mapping[str, Tensor]) -> Tensor:
    """Mean squared difference of the Gram matrices from the identity, summed over blocks and kinds of vectors."""
    total = tensors["keys"].new_zeros(())
    for name in _PARTS:
        rows = tensors[name].flatten(2)
        gram = rows @ rows.mT
        total = total + (gram - torch.eye(gram.shape[-1], device=gram.device)).square().mean((1, 2)).sum()
    return total


def _start(earlier: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], seed: int) -> ModuleTensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _orthonormal(earlier[name].flatten(2).cpu() if earlier else None, shape, generator)
        for name, shape in shapes.items()
    }


def _orthonormal(earlier: Tensor | None, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(blocks, M, ...) of unit length, orthogonal to each other and to ``earlier`` (blocks, K, D) where D >= K + M."""
    rows = torch.randn(shape, generator=generator).flatten(2)
    known = rows[:, :0] if earlier is None else earlier
    every = torch.cat([known, rows], 1)
    if every.shape[1] <= every.shape[2]:
        # Gram-Schmidt from the first row on: the last columns of Q are what the new rows add to the earlier ones.
        rows = torch.linalg.qr(every.mT).Q.mT[:, known.shape[1] :].contiguous()
    return F.normalize(rows, dim=-1).reshape(shape)
