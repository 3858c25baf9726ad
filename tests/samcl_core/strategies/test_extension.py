"""A new strategy and a new adapter are one file and one line each: CONTRIBUTING.md shows the code, this runs it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from samcl_core import adapters, strategies
from samcl_core.adapters import base as adapters_base
from samcl_core.adapters import build_adapter, registered_adapters
from samcl_core.strategies import Context, Task, build_strategy, registered_strategies, segment
from samcl_core.strategies import base as strategies_base
from samcl_core.tensors import tensor_bytes

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"


def shown(section: str) -> tuple[str, str, str]:
    """A section's file, the module it is, and the registration below it."""
    text = PAGE.read_text(encoding="utf-8")
    body = text.split(f"## {section}\n")[1].split("\n## ")[0]
    code, lines = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    path = re.match(r"# (\S+)\.py\n", code)
    assert path is not None
    return code, path[1].removesuffix("/__init__").replace("/", "."), lines


def added(section: str, package: ModuleType, folder: Path) -> str:
    """Do what the section says: its file as a module of the package, its lines run in the package."""
    code, name, lines = shown(section)
    assert name.startswith(package.__name__ + ".")
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    statements = [line for line in lines.splitlines() if line]
    assert len([line for line in statements if not line.startswith("from ")]) <= 1 and len(statements) <= 2
    exec(lines, dict(vars(package)))
    return name


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both registries, left as they were."""
    before = set(sys.modules)
    monkeypatch.setattr(strategies_base, "_BUILDERS", dict(strategies_base._BUILDERS))
    monkeypatch.setattr(adapters_base, "_BUILDERS", dict(adapters_base._BUILDERS))
    yield
    for name in ("samcl_core.strategies.weight_anchor", "samcl_core.adapters.neck_bias"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.mark.usefixtures("registries")
def test_a_strategy_is_one_file_and_one_line(
    toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    known = set(registered_strategies())
    added("Add a strategy", strategies, tmp_path)
    assert set(registered_strategies()) - known == {"weight_anchor"}
    distance = {}
    for weight in (0.0, 100.0):
        strategy = build_strategy("weight_anchor", weight=weight)
        first, last = toy.learnt(strategy, tasks, replace(context, folder=tmp_path / f"{weight:g}"))
        distance[weight] = sum(float((last.model[k] - first.model[k]).square().sum()) for k in last.model)
        last.save(tmp_path / "state")
    naive = toy.learnt(build_strategy("naive"), tasks, context)[-1]
    assert tensor_bytes(toy.learnt(build_strategy("weight_anchor", weight=0.0), tasks, context)[-1].model) == (
        tensor_bytes(naive.model)
    )
    assert 0 < distance[100.0] < 0.5 * distance[0.0]


@pytest.mark.usefixtures("registries")
def test_an_adapter_is_one_folder_and_one_line(
    toy: ModuleType, tasks: tuple[Task, Task], context: Context, tmp_path: Path
) -> None:
    known = set(registered_adapters())
    added("Add a module type (adapter)", adapters, tmp_path)
    assert set(registered_adapters()) - known == {"neck_bias"}
    adapter = build_adapter("neck_bias", context.backbone.site)
    context = replace(context, adapter=adapter)
    batch = toy.batch_of([tasks[0].train[0], tasks[1].train[0]], context)
    plain = context.backbone.suffix(batch.prefix, batch.prompts).logits
    for name in ("naive", "bank"):
        options = {"selector_options": {"fallback": "never"}} if name == "bank" else {}
        strategy = build_strategy(name, **options)
        state = toy.learnt(strategy, tasks, context)[-1]
        found = segment(strategy, state, batch.prefix, batch.prompts, context).logits
        assert not torch.equal(found, plain)
    bank = strategies.bank_of(state, context)
    rows = bank.selector.choose(batch.prefix.embedding).index.tolist()
    for row, chosen in enumerate(rows):
        hooks = adapter.hooks(bank.modules[chosen].weights, batch.prompts)
        alone = context.backbone.suffix(batch.prefix, batch.prompts, hooks).logits
        torch.testing.assert_close(found[row], alone[row], rtol=1e-4, atol=1e-5)
    null = context.backbone.suffix(batch.prefix, batch.prompts, adapter.hooks(adapter.null(), batch.prompts)).logits
    assert torch.equal(null, plain)


def test_the_strategies_page_is_the_registry() -> None:
    page = (PAGE.parent / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page.split("## Options")[0], re.MULTILINE)
    assert rows == list(registered_strategies())
    sections = page.split("\n### ")[1:]
    for name, builder in registered_strategies().items():
        about = "".join(section for section in sections if f"`{name}`" in section.splitlines()[0])
        assert about, f"{name} has no section"
        for option in set(vars(builder())) - {"choose"}:
            assert f"`{option}`" in about, f"{name}: {option} is not described"
