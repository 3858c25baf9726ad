"""Imports go one way, the core needs no orchestration, and what must start fast does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAYERS = (
    {"errors", "progress", "quality"},
    {"files", "masks", "parquet", "tensors"},
    {"config", "drawing"},
    {"backbones", "domains", "evaluation"},
    {"adapters", "selectors", "bank"},
    {"training", "inference"},
    {"strategies"},
    {"stages", "serving"},
    {"benchmarks", "speed"},
)
"""Parts of the core, lowest first: a part imports from its own layer and from those below it, never in a circle."""

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
ORCHESTRATION = ("prefect", "dvc", "mlflow")
TORCH_FREE = (
    "samcl_core.errors",
    "samcl_core.files",
    "samcl_core.config",
    "samcl_core.progress",
    "samcl_core.drawing",
    "samcl_core.quality",
    "samcl_core.domains",
    "samcl_core.evaluation",
    "samcl_core.evaluation.rmatrix",
    "samcl_core.evaluation.pictures",
    "samcl_core.evaluation.tables",
    "samcl_core.evaluation.selection",
    "samcl_core.stages.ingest",
    "samcl_core.stages.points",
)


@cache
def sources() -> dict[str, ast.Module]:
    """Dotted name to syntax tree of every module of ours."""
    found = {}
    for top in ("samcl_core", "tasks", "flows"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(name: str) -> Iterator[str]:
    """Every module that ``name`` imports anywhere, also inside functions and for type checking only."""
    for node in ast.walk(sources()[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def core_edges() -> dict[str, set[str]]:
    """Part of the core to the other parts it imports."""
    edges: dict[str, set[str]] = {}
    for name in sources():
        if name.startswith("samcl_core."):
            used = {part_of(other) for other in imports_of(name) if other in sources() and "." in other}
            edges.setdefault(part_of(name), set()).update(used - {part_of(name)})
    return edges


def test_modules_are_found() -> None:
    assert len(sources()) > 50


def test_every_part_of_the_core_has_a_layer() -> None:
    parts = {part_of(name) for name in sources() if name.startswith("samcl_core.")}
    assert parts <= set(LEVEL), "give the new part a layer"
    assert set(LEVEL) <= parts, "a layer names a part that is gone"


def test_the_core_imports_downwards() -> None:
    upwards = [(part, used) for part, others in core_edges().items() for used in others if LEVEL[used] > LEVEL[part]]
    assert upwards == []


def test_parts_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    edges = core_edges()
    reached: dict[str, set[str]] = {}

    def reach(part: str, path: tuple[str, ...]) -> set[str]:
        assert part not in path, f"circle: {' -> '.join((*path, part))}"
        if part not in reached:
            reached[part] = set().union(*({used} | reach(used, (*path, part)) for used in edges.get(part, set())))
        return reached[part]

    for part in edges:
        reach(part, ())


@pytest.mark.parametrize("name", [name for name in sources() if not name.startswith("flows")])
def test_tasks_and_core_do_not_import_what_is_above_them(name: str) -> None:
    above = ("flows",) if name.startswith("tasks") else ("flows", "tasks", *ORCHESTRATION)
    found = sorted({other for other in imports_of(name) if other.split(".")[0] in above})
    assert found == []


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_whole_core_imports_without_orchestration() -> None:
    script = f"""
        import importlib, pkgutil, sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {(*ORCHESTRATION, "tasks", "flows")!r}:
                    raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

        sys.meta_path.insert(0, Blocked())
        import samcl_core
        names = [found.name for found in pkgutil.walk_packages(samcl_core.__path__, "samcl_core.")]
        for name in names:
            importlib.import_module(name)
        expected = {sum(name.startswith("samcl_core.") for name in sources())}
        assert len(names) == expected, (len(names), expected)
    """
    run(script)


def test_the_fast_part_imports_neither_torch_nor_matplotlib() -> None:
    script = f"""
        import importlib, sys
        for name in {TORCH_FREE!r}:
            importlib.import_module(name)
            slow = [slow for slow in ("torch", "torchvision", "matplotlib", "sam2") if slow in sys.modules]
            assert not slow, (name, slow)
    """
    run(script)


def test_the_core_never_prints_and_never_configures_logging() -> None:
    found = []
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if name.startswith("samcl_core") and isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in {"print", "logging.basicConfig", "sys.stdout.write", "sys.stderr.write"}:
                    found.append(f"{name}:{node.lineno} {called}")
    assert found == []
