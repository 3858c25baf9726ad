"""O-LoRA: a new LoRA for each domain, in a subspace orthogonal to those of the earlier ones; all of them are summed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from samcl_core.adapters.base import ModuleTensors, gathered
from samcl_core.adapters.lora import Lora, LoraHooks
from samcl_core.backbones.base import Masks, Prefix, Prompts, SuffixHooks
from samcl_core.errors import BankError, UsageError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.strategies.base import Context, State, Task
from samcl_core.strategies.checks import check_weight
from samcl_core.strategies.single import SingleAdapter, on_device
from samcl_core.tensors import tensor_bytes
from samcl_core.training import Batch, Extra, Forward

__all__ = ["GrowingLora", "OLora", "overlap", "summed"]


@dataclass(frozen=True)
class OLora(SingleAdapter):
    """Orthogonal low-rank adaptation (Wang et al., EMNLP 2023 Findings, arXiv 2310.14152).

    Each domain trains a LoRA (A_t, B_t) of its own while the earlier ones are frozen and added. The loss gets
    ``ortho_weight`` * sum |A_i A_t^T| over all earlier i, projections and blocks, and ``l2_weight`` times the sum of
    the new matrices' norms. At inference all updates are added: B_1 A_1 + ... + B_T A_T, which is one LoRA of rank T r
    with the matrices side by side. So they are stored.

    What differs: the absolute values are the released code's, the paper writes squares. The code scales updates by
    alpha / rank = 4; the adapter's own factor (1 by default) is kept here.

    Attributes:
        ortho_weight: lambda_1, 0.5 in the released scripts for orders 1 to 3.
        l2_weight: lambda_2, 0 in these scripts; the paper has no such term.
    """

    ortho_weight: float = 0.5
    l2_weight: float = 0.0

    name: ClassVar[str] = "o_lora"
    title: ClassVar[str] = "O-LoRA"
    reference: ClassVar[str] = "arXiv 2310.14152"
    # Rank 8 on queries and values, the default of the released code.
    adapter: ClassVar[Mapping[str, Any] | None] = {"kind": "lora", "rank": 8}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("ortho_weight", self.ortho_weight)
        check_weight("l2_weight", self.l2_weight)

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        """The state after the last of ``tasks``; see ``Strategy``.

        Raises:
            UsageError: the context's adapter is not ``lora``.
        """
        earlier = {} if state is None else on_device(state.model, context)
        return super().learn(state, tasks, replace(context, adapter=self.adapter_in_training(earlier, context)))

    def adapter_in_training(self, earlier: ModuleTensors, context: Context) -> GrowingLora:
        """What a new domain trains after ``earlier`` LoRAs side by side (none before the first one)."""
        return GrowingLora(_lora(context), earlier)

    def initial(self, state: State | None, tasks: Sequence[Task], context: Context) -> ModuleTensors | None:
        """A new LoRA by a seed of this domain's own: it must not start in the subspace of the first one."""
        return context.adapter.fresh(derived_seed("samcl.strategy", self.name, context.seed, len(tasks)))

    def extra(self, state: State | None, tasks: Sequence[Task], context: Context) -> Extra:
        """What keeps the new subspace orthogonal to the earlier ones."""
        assert isinstance(context.adapter, GrowingLora)
        return _Orthogonal(context.adapter.earlier, self.ortho_weight, self.l2_weight)

    def remember(self, state: State | None, tasks: Sequence[Task], model: ModuleTensors, context: Context) -> State:
        """All LoRAs side by side; the earlier ones' numbers as they were."""
        return State(tuple(task.name for task in tasks), summed({} if state is None else state.model, model))

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        """The sum of all updates for every image."""
        lora = _lora(context)
        return LoraHooks(on_device(state.model, context), lora.site, lora.config.scale)


class GrowingLora:
    """One domain's LoRA in training beside frozen earlier ones, as an ``Adapter``. It is no kind for banks.

    Attributes:
        lora: the adapter of one domain.
        earlier: the frozen ones side by side, where the backbone is; empty before the first domain.
    """

    kind = "o_lora"

    def __init__(self, lora: Lora, earlier: ModuleTensors) -> None:
        self.lora = lora
        self.site = lora.site
        self.plan = lora.plan
        self.earlier = earlier

    def parameters(self) -> dict[str, Any]:
        """The LoRA's settings, and a digest of the frozen ones: a checkpoint of another past is not continued."""
        frozen = {name: tensor.cpu() for name, tensor in self.earlier.items()}
        return self.lora.parameters() | {"earlier": hashlib.sha256(tensor_bytes(frozen)).hexdigest()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of one domain's LoRA."""
        return self.lora.shapes()

    def fresh(self, seed: int) -> ModuleTensors:
        """A new LoRA, which adds nothing yet."""
        return self.lora.fresh(seed)

    def null(self) -> ModuleTensors:
        """A LoRA of zeros, which adds nothing."""
        return self.lora.null()

    def hooks(self, tensors: Mapping[str, Tensor], prompts: Prompts, index: Tensor | None = None) -> LoraHooks:
        """The sum of all updates.

        Raises:
            BankError: tensors are missing or have other shapes, or there is an ``index``: the sum serves all domains.
        """
        if index is not None:
            raise BankError("the summed LoRAs serve all domains, expected no index of modules")
        new = gathered(self.lora, tensors, prompts, None)
        return LoraHooks(summed(self.earlier, new), self.site, self.lora.config.scale)


class _Orthogonal(Extra):
    def __init__(self, earlier: ModuleTensors, ortho_weight: float, l2_weight: float) -> None:
        self._earlier = earlier
        self._weights = ortho_weight, l2_weight

    def key(self) -> list[float]:
        """Both weights; the earlier tensors are in the adapter's parameters."""
        return list(self._weights)

    def penalty(self, tensors: ModuleTensors, batch: Batch, found: Masks, forward: Forward) -> Tensor | None:
        """The weighted sum, ``None`` where it is always zero."""
        ortho, l2 = self._weights
        terms = [ortho * overlap(self._earlier, tensors)] if ortho and self._earlier else []
        if l2:
            terms.append(l2 * torch.stack([tensor.norm() for tensor in tensors.values()]).sum())
        return torch.stack(terms).sum() if terms else None


def overlap(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Tensor:
    """0-d: sum of |A_i A_t^T| over the ``A`` matrices (K, C) of ``earlier`` and those (r, C) of ``new``."""
    return torch.stack([(earlier[name] @ new[name].T).abs().sum() for name in new if name.startswith("A_")]).sum()


def summed(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> ModuleTensors:
    """One LoRA whose update is the sum of both: ``A`` (K + r, C) below each other, ``B`` (C, K + r) side by side."""
    if not earlier:
        return dict(new)
    return {name: torch.cat([earlier[name], new[name]], 0 if name.startswith("A_") else 1) for name in new}


def _lora(context: Context) -> Lora:
    if not isinstance(context.adapter, Lora):
        raise UsageError(
            f"o_lora was given the adapter {context.adapter.kind!r}, expected 'lora'", hint="adapter: {kind: lora}"
        )
    return context.adapter
