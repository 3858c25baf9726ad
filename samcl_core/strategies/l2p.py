"""L2P: one pool of prompts for all domains, from which each image takes those with the nearest keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.adapters.options import whole_number
from samcl_core.backbones.base import AdapterSite
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.checks import check_weight
from samcl_core.strategies.prompt_pool import (
    PoolAdapter,
    PoolPenalty,
    PromptPool,
    by_block,
    drawn,
    similarity,
)
from samcl_core.training import Extra

__all__ = ["L2P"]


@dataclass(frozen=True)
class L2P(PromptPool):
    """Learning to Prompt (Wang et al., CVPR 2022, arXiv 2112.08654).

    Of M prompts an image takes the N whose keys have the largest cosine with its query; training adds
    ``key_weight`` times the sum of 1 - cosine over the chosen keys. Prompts and keys of all domains are
    the same tensors, and nothing is frozen.

    What differs: the paper prepends prompts to the input of the first layer; here they are keys and values of each
    adapted block, since the frozen prefix is computed without them (arXiv 2211.13218 measures this form as
    "Deep L2P++"). Each image chooses for itself in training, too; the released code lets the batch vote. The
    paper's option to choose rarely used prompts more often, which needs the borders of domains, is left out.

    Attributes:
        num_prompts: M, 10 in the paper and in its code.
        num_chosen: N, 5 in the paper (4 in its code for CIFAR-100).
        length: tokens of each prompt, 5 in the paper (10 in this code).
        key_weight: lambda, 0.5 in the paper (1 in this code).
    """

    num_prompts: int = 10
    num_chosen: int = 5
    length: int = 5
    key_weight: float = 0.5

    name: ClassVar[str] = "l2p"
    title: ClassVar[str] = "L2P"
    reference: ClassVar[str] = "arXiv 2112.08654"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("num_prompts", self.num_prompts, 10_000)
        whole_number("num_chosen", self.num_chosen, self.num_prompts)
        whole_number("length", self.length, 1024)
        check_weight("key_weight", self.key_weight)

    def pool(self, earlier: ModuleTensors, site: AdapterSite) -> PoolAdapter:
        """All prompts: (blocks, keys and values, M, L, C), and their keys (M, C)."""
        shapes: dict[str, tuple[int, ...]] = {
            "keys": (self.num_prompts, site.dim),
            "prompts": (len(site.blocks), 2, self.num_prompts, self.length, site.dim),
        }
        return PoolAdapter(
            self.name,
            site,
            self.settings(),
            shapes,
            serve=lambda tensors, query: self.serve(tensors, query, site),
            start=lambda seed: drawn(shapes, seed),
        )

    def shared(self) -> tuple[str, ...]:
        """Everything."""
        return "keys", "prompts"

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra:
        """The chosen keys are pulled towards the queries."""
        return PoolPenalty(self.key_weight, self._distance)

    def serve(self, tensors: Mapping[str, Tensor], query: Tensor, site: AdapterSite) -> Mapping[int, Tensor]:
        """The tokens of the N chosen prompts; their order means nothing to an attention."""
        return by_block(site.blocks, tensors["prompts"][:, :, self.chosen(tensors, query)].flatten(3, 4), self.gain)

    def chosen(self, tensors: Mapping[str, Tensor], query: Tensor) -> Tensor:
        """(B, N) int64: the prompts of queries (B, C), nearest first."""
        return similarity(query, tensors["keys"]).topk(self.num_chosen, dim=1).indices

    def _distance(self, tensors: ModuleTensors, query: Tensor) -> Tensor:
        nearest = similarity(query, tensors["keys"]).topk(self.num_chosen, dim=1).values
        return (1 - nearest).sum(1).mean()
