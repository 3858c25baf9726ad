"""DualPrompt: a prompt that all domains share, and one for each domain that is found again by its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.adapters.options import whole_number
from samcl_core.backbones.base import AdapterSite
from samcl_core.errors import UsageError
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.checks import check_weight
from samcl_core.strategies.prompt_pool import (
    PoolAdapter,
    PoolPenalty,
    PromptPool,
    by_block,
    drawn,
    grown,
    similarity,
)
from samcl_core.training import Extra

__all__ = ["DualPrompt"]

_OWN = ("keys", "expert")


@dataclass(frozen=True)
class DualPrompt(PromptPool):
    """DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799).

    The G-prompt acts in the first adapted blocks and goes on learning through all domains. The E-prompt of a domain
    acts in the others; it and its key are frozen afterwards. Training knows its domain and pulls the key towards the
    queries: plus ``key_weight`` * (1 - cosine). At inference each image gets the E-prompt with the
    nearest key. Both are prefix-tuned: keys and values in the attention.

    What differs: the paper puts the G-prompt into layers 1 and 2 and E-prompts into layers 3 to 5 of the encoder; here
    layers are counted from the first adapted block (on SAM ViT-B these are two and three, too).

    Attributes:
        general_length: keys, and as many values, of the G-prompt: 5 in the paper and in its code.
        expert_length: the same of an E-prompt: 20 in the paper and in its code.
        num_general_blocks: adapted blocks with the G-prompt, 2 in the paper; fewer where no other block would be left.
        key_weight: lambda, 1 in the paper and in its code.
    """

    general_length: int = 5
    expert_length: int = 20
    num_general_blocks: int = 2
    key_weight: float = 1.0

    name: ClassVar[str] = "dualprompt"
    title: ClassVar[str] = "DualPrompt"
    reference: ClassVar[str] = "arXiv 2204.04799"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("general_length", "expert_length", "num_general_blocks"):
            whole_number(option, getattr(self, option), 1024)
        check_weight("key_weight", self.key_weight)

    def pool(self, earlier: ModuleTensors, site: AdapterSite) -> PoolAdapter:
        """The G-prompt (blocks, 2, L, C), and one domain's E-prompt (1, blocks, 2, L, C) with its key (1, C)."""
        first, later = self._blocks(site)
        shapes: dict[str, tuple[int, ...]] = {
            "general": (len(first), 2, self.general_length, site.dim),
            "keys": (1, site.dim),
            "expert": (1, len(later), 2, self.expert_length, site.dim),
        }
        # Training knows its domain; the only key there is would be the nearest one anyway.
        return PoolAdapter(
            self.name,
            site,
            self.settings(),
            shapes,
            serve=lambda tensors, query: self.serve(tensors, query, site),
            start=lambda seed: drawn(shapes, seed),
        )

    def shared(self) -> tuple[str, ...]:
        """The G-prompt."""
        return ("general",)

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra:
        """The domain's key is pulled towards its queries."""
        return PoolPenalty(self.key_weight, lambda tensors, query: (1 - similarity(query, tensors["keys"])).mean())

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """The G-prompt as it is now, and all E-prompts and keys."""
        return State(tuple(task.name for task in tasks), grown(state, model, dict.fromkeys(_OWN, 0)))

    def serve(self, tensors: Mapping[str, Tensor], query: Tensor, site: AdapterSite) -> Mapping[int, Tensor]:
        """The G-prompt for all, and for each image the E-prompt with the nearest key."""
        first, later = self._blocks(site)
        experts = tensors["expert"][self.nearest(tensors, query)].permute(1, 2, 0, 3, 4)
        return by_block(first, tensors["general"][:, :, None], self.gain) | by_block(later, experts, self.gain)

    def nearest(self, tensors: Mapping[str, Tensor], query: Tensor) -> Tensor:
        """(B,) int64: position in the stream of the domain whose key is nearest to each query (B, C)."""
        return similarity(query, tensors["keys"]).argmax(1)

    def _blocks(self, site: AdapterSite) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks with the G-prompt, and those with E-prompts."""
        if len(site.blocks) < 2:
            raise UsageError(f"the backbone has {len(site.blocks)} adapted block, DualPrompt needs at least 2")
        count = min(self.num_general_blocks, len(site.blocks) - 1)
        return site.blocks[:count], site.blocks[count:]
