from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.errors import UsageError
from samcl_core.strategies import Context, State, Task
from samcl_core.strategies.o_lora import OLora, overlap, summed

RANK = 2


@pytest.fixture
def lora(context: Context) -> Context:
    """The context with small LoRAs and time to turn them."""
    options = context.options.model_copy(update={"epochs": 30})
    return replace(context, adapter=build_adapter("lora", context.backbone.site, rank=RANK, alpha=3), options=options)


def largest_cosine(state: State) -> float:
    """Between directions of the first and of the second domain's ``A``, over all projections."""
    cosines = []
    for name, a in state.model.items():
        if name.startswith("A_"):
            rows = a / a.norm(dim=1, keepdim=True)
            cosines.append(float((rows[:RANK] @ rows[RANK:].T).abs().max()))
    assert len(cosines) == 4  # q and v of two blocks
    return max(cosines)


def test_subspaces_are_orthogonal_with_a_large_weight_and_not_without(
    toy: ModuleType, tasks: tuple[Task, Task], lora: Context
) -> None:
    (first, free), (_, apart) = (toy.learnt(OLora(ortho_weight=weight), tasks, lora) for weight in (0.0, 100.0))
    assert largest_cosine(free) > 0.2
    assert largest_cosine(apart) < 0.01
    for name, tensor in apart.model.items():
        axis = 0 if name.startswith("A_") else 1
        old, new = tensor.split(RANK, axis)
        assert torch.equal(old, first.model[name])  # what the first domain learnt keeps its bytes
        assert float(new.norm()) > 0.05  # orthogonal, not gone


def test_the_second_domain_does_not_start_where_the_first_did(tasks: tuple[Task, Task], lora: Context) -> None:
    strategy = OLora()
    starts = [strategy.initial(None, tasks[:count], lora) for count in (1, 2)]
    assert starts[0] is not None and starts[1] is not None
    assert not torch.equal(starts[0]["A_q_000"], starts[1]["A_q_000"])


def test_merged_equals_summed(toy: ModuleType, tasks: tuple[Task, Task], lora: Context) -> None:
    first, second = toy.learnt(OLora(), tasks, lora)
    own = {name: tensor.split(RANK, 0 if name.startswith("A_") else 1)[1] for name, tensor in second.model.items()}
    batch = toy.batch_of(tasks[0].train, lora)
    hooks = OLora().hooks(second, batch.prefix, batch.prompts, lora)
    assert hooks is not None
    generator = torch.Generator().manual_seed(0)
    block, dim = lora.backbone.site.blocks[0], lora.backbone.site.dim
    x, qkv = (torch.randn(6, 3, 3, width, generator=generator) for width in (dim, 3 * dim))
    expected = qkv.clone()
    for model in (first.model, own):
        for part, which in enumerate(["q", "v"]):
            update = 3 / RANK * x @ model[f"A_{which}_000"].T @ model[f"B_{which}_000"].T
            expected[..., 2 * part * dim : (2 * part + 1) * dim] += update
    torch.testing.assert_close(hooks.project(block, x, qkv), expected)

    # The stored state is an ordinary LoRA of rank T r.
    merged = build_adapter("lora", lora.backbone.site, rank=2 * RANK, alpha=6)
    found = lora.backbone.suffix(batch.prefix, batch.prompts, hooks).logits
    assert torch.equal(
        found, lora.backbone.suffix(batch.prefix, batch.prompts, merged.hooks(second.model, batch.prompts)).logits
    )


def test_penalty_is_the_sum_of_both_terms(tasks: tuple[Task, Task], lora: Context) -> None:
    generator = torch.Generator().manual_seed(1)
    earlier, new = (
        {name: torch.randn(shape, generator=generator) for name, shape in lora.adapter.shapes().items()}
        for _ in range(2)
    )
    expected: Any = sum(
        abs(float(a @ b)) for name in new if name.startswith("A_") for a in earlier[name] for b in new[name]
    )
    assert float(overlap(earlier, new)) == pytest.approx(expected, rel=1e-5)
    strategy = OLora(ortho_weight=0.5, l2_weight=0.1)
    context = replace(lora, adapter=strategy.adapter_in_training(earlier, lora))
    penalty: Any = strategy.extra(None, tasks, context).penalty
    norms = sum(float(tensor.square().sum()) ** 0.5 for tensor in new.values())
    assert float(penalty(new, None, None, None)) == pytest.approx(0.5 * expected + 0.1 * norms, rel=1e-5)
    first = replace(lora, adapter=strategy.adapter_in_training({}, lora))
    nothing: Any = OLora().extra(None, tasks, first).penalty
    assert nothing(new, None, None, None) is None  # nothing to be orthogonal to


def test_summed_is_block_by_block() -> None:
    def pair(value: float) -> dict[str, Tensor]:
        return {"A_q_000": torch.full((1, 2), value), "B_q_000": torch.full((2, 1), 10 * value)}

    both = summed(pair(1), pair(2))
    assert both["A_q_000"].tolist() == [[1, 1], [2, 2]] and both["B_q_000"].tolist() == [[10, 20], [10, 20]]
    assert summed({}, pair(1))["A_q_000"].tolist() == [[1, 1]]


def test_another_adapter_is_refused(tasks: tuple[Task, Task], context: Context) -> None:
    with pytest.raises(UsageError, match="was given the adapter 'augmodule', expected 'lora'"):
        OLora().learn(None, tasks[:1], context)
