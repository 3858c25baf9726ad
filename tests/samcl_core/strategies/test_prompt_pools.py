from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.base import AdapterSite, Prefix
from samcl_core.errors import BankError, UsageError
from samcl_core.strategies import Context, State, Task
from samcl_core.strategies.coda_prompt import CodaPrompt
from samcl_core.strategies.dualprompt import DualPrompt
from samcl_core.strategies.l2p import L2P
from samcl_core.strategies.prompt_pool import PoolAdapter, PromptPool

DIM = 16


@pytest.fixture
def pools(context: Context) -> Context:
    """The context with an adapter whose prefixes the pools take, and time for keys to move."""
    options = context.options.model_copy(update={"epochs": 12})
    return replace(context, adapter=build_adapter("prompt_tokens", context.backbone.site), options=options)


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context_of(strategy: PromptPool, model: ModuleTensors, query: Tensor, context: Context) -> list[Any]:
    """Keys and values that each adapted block gets for queries (B, C)."""
    site = context.backbone.site
    prefix = Prefix(torch.zeros(len(query), site.grid, site.grid, site.dim), query)
    hooks = strategy.hooks(State(("any",), model), prefix, None, context)  # type: ignore[arg-type]
    assert hooks is not None
    hooks.begin(prefix)
    return [hooks.context(block) for block in site.blocks]


def queries(task: Task, context: Context) -> Tensor:
    return context.cache.embeddings(task.train + task.val)


def penalty_of(
    strategy: PromptPool, earlier: ModuleTensors, tensors: ModuleTensors, prefix: Prefix, context: Context
) -> float:
    pool = strategy.adapter_in_training(earlier, context)
    extra: Any = strategy.extra(None, (), replace(context, adapter=pool))
    batch: Any = type("Query", (), {"prefix": prefix})
    return float(extra.penalty(tensors, batch, None, None))


# L2P


def test_l2p_takes_the_prompts_with_the_nearest_keys(pools: Context) -> None:
    strategy = L2P(num_prompts=5, num_chosen=2, length=3, gain=1.0)
    keys = torch.eye(5, DIM)
    prompts = randoms(2, 2, 5, 3, DIM)
    query = 7 * keys[3] + 2 * keys[1] + 0.1 * keys[0], 0.2 * keys[4] + 0.1 * keys[2]
    found = context_of(strategy, {"keys": keys, "prompts": prompts}, torch.stack(query), pools)
    for block, pair in enumerate(found):
        for part, tokens in enumerate(pair):  # keys, values
            for row, (near, second) in enumerate([(3, 1), (4, 2)]):
                expected = torch.cat([prompts[block, part, near], prompts[block, part, second]])
                assert torch.equal(tokens[row], expected)


def test_l2p_pulls_chosen_keys_to_the_queries_and_leaves_the_others(
    toy: ModuleType, tasks: tuple[Task, Task], pools: Context
) -> None:
    strategy = L2P(num_prompts=8, num_chosen=2, length=2)
    start = strategy.initial(None, tasks[:1], replace(pools, adapter=strategy.adapter_in_training({}, pools)))
    assert start is not None
    model = strategy.learn(None, tasks[:1], pools).model
    query = pools.cache.embeddings(tasks[0].train)
    chosen = set(strategy.chosen(model, query).flatten().tolist())
    moved = {row for row in range(8) if not torch.equal(model["keys"][row], start["keys"][row])}
    assert chosen <= moved < set(range(8))
    for row in chosen:
        before, after = (F.cosine_similarity(query, keys[row][None]).mean() for keys in (start["keys"], model["keys"]))
        assert after > before + 0.1
    for row in set(range(8)) - moved:
        assert torch.equal(model["prompts"][:, :, row], start["prompts"][:, :, row])


def test_l2p_goes_on_with_one_pool(toy: ModuleType, tasks: tuple[Task, Task], pools: Context) -> None:
    first, second = toy.learnt(L2P(num_prompts=8, num_chosen=2, length=2), tasks, pools)
    assert first.model_bytes == second.model_bytes == 4 * (8 * DIM + 2 * 2 * 8 * 2 * DIM)
    assert not torch.equal(first.model["prompts"], second.model["prompts"])


def test_l2p_loss_is_the_distance_to_the_chosen_keys(pools: Context) -> None:
    strategy = L2P(num_prompts=5, num_chosen=2, length=1, key_weight=0.5)
    keys, query = randoms(5, DIM), randoms(3, DIM, seed=1)
    expected = 0.0
    for row in query:
        cosines = sorted((float(F.cosine_similarity(row, key, dim=0)) for key in keys), reverse=True)
        expected += sum(1 - cosine for cosine in cosines[:2]) / 3
    prefix = Prefix(torch.zeros(3, 1, 1, DIM), query)
    found = penalty_of(strategy, {}, {"keys": keys, "prompts": randoms(2, 2, 5, 1, DIM)}, prefix, pools)
    assert found == pytest.approx(0.5 * expected, rel=1e-5)


# DualPrompt


def test_dualprompt_finds_the_domain_of_images_that_nobody_names(
    toy: ModuleType, tasks: tuple[Task, Task], pools: Context
) -> None:
    strategy = DualPrompt(general_length=2, expert_length=3, gain=1.0)
    second = toy.learnt(strategy, tasks, pools)[1]
    for position, task in enumerate(tasks):
        query = queries(task, pools)
        assert strategy.nearest(second.model, query).tolist() == [position] * len(query)
        assert F.cosine_similarity(query, second.model["keys"][position][None]).min() > 0.8
    mixed = torch.stack([queries(tasks[1], pools)[0], queries(tasks[0], pools)[0]])
    general, expert = context_of(strategy, second.model, mixed, pools)
    for part in (0, 1):
        assert torch.equal(general[part], second.model["general"][0, part][None])
        assert torch.equal(expert[part], second.model["expert"][[1, 0], 0, part])


def test_dualprompt_freezes_a_domain_s_own_part_and_goes_on_with_the_shared_one(
    toy: ModuleType, tasks: tuple[Task, Task], pools: Context
) -> None:
    first, second = toy.learnt(DualPrompt(general_length=2, expert_length=3), tasks, pools)
    for name in ("keys", "expert"):
        assert second.model[name].shape == (2, *first.model[name].shape[1:])
        assert torch.equal(second.model[name][:1], first.model[name])
        assert not torch.equal(second.model[name][1:], first.model[name])
    assert not torch.equal(second.model["general"], first.model["general"])


def test_dualprompt_loss_is_the_distance_to_the_domain_s_key(pools: Context) -> None:
    strategy = DualPrompt(general_length=2, expert_length=3, key_weight=2.0)
    tensors = strategy.adapter_in_training({}, pools).fresh(0)
    query = randoms(4, DIM)
    expected = 2 * float((1 - F.cosine_similarity(query, tensors["keys"])).mean())
    found = penalty_of(strategy, {}, tensors, Prefix(torch.zeros(4, 1, 1, DIM), query), pools)
    assert found == pytest.approx(expected, rel=1e-5)


def test_dualprompt_shares_the_first_blocks_and_leaves_one(pools: Context) -> None:
    site = AdapterSite(DIM, None, 8, (7, 8, 9, 10, 11), (0,) * 5)
    shapes = DualPrompt().pool({}, site).shapes()
    assert shapes["general"] == (2, 2, 5, DIM) and shapes["expert"] == (1, 3, 2, 20, DIM)
    assert DualPrompt(num_general_blocks=9).pool({}, site).shapes()["expert"][1] == 1
    with pytest.raises(UsageError, match="has 1 adapted block, DualPrompt needs at least 2"):
        DualPrompt().pool({}, AdapterSite(DIM, None, 8, (3,), (0,)))


# CODA-Prompt


def coda(num_components: int, seed: int) -> ModuleTensors:
    shapes = {"keys": (DIM,), "attention": (DIM,), "prompts": (2, 3, DIM)}
    return {name: randoms(2, num_components, *shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def test_coda_weights_are_the_formula_s(pools: Context) -> None:
    model, query = coda(4, 0), randoms(3, DIM, seed=9)
    found = context_of(CodaPrompt(num_components=4, length=3, gain=1.0), model, query, pools)
    for block, pair in enumerate(found):
        for row, q in enumerate(query):
            expected = torch.zeros(2, 3, DIM)
            for m in range(4):
                attended = q * model["attention"][block, m]
                weight = F.cosine_similarity(attended, model["keys"][block, m], dim=0)
                expected += weight * model["prompts"][block, m]
            torch.testing.assert_close(torch.stack([pair[0][row], pair[1][row]]), expected)


def test_coda_gives_a_component_s_own_prompt_where_the_query_meets_its_key(pools: Context) -> None:
    model = coda(2, 0)
    model["attention"] = torch.ones(2, 2, DIM)
    model["keys"] = torch.eye(2, DIM).expand(2, 2, DIM)
    found = context_of(CodaPrompt(num_components=2, length=3, gain=1.0), model, 5 * torch.eye(2, DIM), pools)
    for block, (keys, values) in enumerate(found):
        torch.testing.assert_close(torch.stack([keys, values], 1), model["prompts"][block])


def test_coda_adds_components_and_freezes_the_earlier_ones(
    toy: ModuleType, tasks: tuple[Task, Task], pools: Context
) -> None:
    first, second = toy.learnt(CodaPrompt(num_components=3, length=2), tasks, pools)
    for name, tensor in second.model.items():
        assert tensor.shape[1] == 6
        assert torch.equal(tensor[:, :3], first.model[name])
        assert not torch.allclose(tensor[:, 3:], first.model[name])


def test_coda_trains_on_old_and_new_components_together(
    tasks: tuple[Task, Task], toy: ModuleType, pools: Context
) -> None:
    strategy = CodaPrompt(num_components=2, length=3)
    earlier, new = coda(3, 0), coda(2, 7)
    both = {name: torch.cat([earlier[name], new[name]], 1) for name in new}
    prefix = pools.cache.get(tasks[0].train)
    hooks = strategy.adapter_in_training(earlier, pools).hooks(new, toy.batch_of(tasks[0].train, pools).prompts)
    hooks.begin(prefix)
    for block, expected in zip(
        pools.backbone.site.blocks, context_of(strategy, both, prefix.embedding, pools), strict=True
    ):
        found = hooks.context(block)
        assert found is not None and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_coda_penalty_is_the_gram_matrix_s_distance_from_the_identity(pools: Context) -> None:
    strategy = CodaPrompt(num_components=2, length=3, ortho_weight=0.1)
    earlier, new = coda(3, 0), coda(2, 7)
    expected = 0.0
    for name in new:
        for block in range(2):
            rows = torch.cat([earlier[name][block], new[name][block]]).flatten(1)
            for i in range(5):
                for j in range(5):
                    expected += (float(rows[i] @ rows[j]) - (i == j)) ** 2 / 25
    prefix = Prefix(torch.zeros(1, 1, 1, DIM), torch.ones(1, DIM))
    assert penalty_of(strategy, earlier, new, prefix, pools) == pytest.approx(0.1 * expected, rel=1e-4)


def test_coda_starts_orthonormal_while_there_is_room(pools: Context) -> None:
    strategy = CodaPrompt(num_components=7, length=3)
    first = strategy.adapter_in_training({}, pools).fresh(1)
    second = strategy.adapter_in_training(first, pools).fresh(2)
    both = {name: torch.cat([first[name], second[name]], 1) for name in first}
    prefix = Prefix(torch.zeros(1, 1, 1, DIM), torch.ones(1, DIM))
    assert penalty_of(strategy, first, second, prefix, pools) < 1e-10
    third = strategy.adapter_in_training(both, pools).fresh(3)  # 21 keys of width 16
    torch.testing.assert_close(third["keys"].norm(dim=-1), torch.ones(2, 7))
    rows = torch.cat([both["prompts"], third["prompts"]], 1).flatten(2)  # 21 prompts of width 96
    torch.testing.assert_close(rows @ rows.mT, torch.eye(21).expand(2, -1, -1), atol=1e-5, rtol=0)


# All


@pytest.mark.parametrize("kind", [L2P, DualPrompt, CodaPrompt])
def test_prompts_are_stored_divided_by_the_gain(kind: type[PromptPool], pools: Context) -> None:
    model = kind().adapter_in_training({}, pools).fresh(0)
    one, three = (context_of(kind(gain=gain), model, randoms(2, DIM), pools) for gain in (1.0, 3.0))
    for pair, larger in zip(one, three, strict=True):
        for part, scaled in zip(pair, larger, strict=True):
            torch.testing.assert_close(scaled, 3 * part)


def test_a_query_of_zeros_is_no_error(pools: Context) -> None:
    for strategy in (L2P(), DualPrompt(), CodaPrompt()):
        model = strategy.adapter_in_training({}, pools).fresh(0)
        for pair in context_of(strategy, model, torch.zeros(1, DIM), pools):
            assert all(bool(torch.isfinite(part).all()) for part in pair)


def test_prefixes_of_another_plan_are_refused(pools: Context) -> None:
    pool = L2P().adapter_in_training({}, pools)
    assert isinstance(pool, PoolAdapter)
    hooks = pool.hooks(pool.fresh(0), None)  # type: ignore[arg-type]
    with pytest.raises(BankError, match="the prefix ends after 'encoder'"):
        hooks.begin(Prefix(torch.zeros(1, 8, 8, DIM), torch.zeros(1, DIM), split="encoder"))
