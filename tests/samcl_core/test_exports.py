"""What a module says it exports is what it defines, and what a package offers is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def dotted(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CORE = sorted((REPOSITORY / "samcl_core").rglob("*.py"))
MODULES = [path for path in CORE if path.name != "__init__.py"]
PACKAGES = [path for path in CORE if path.name == "__init__.py"]
OTHERS = sorted(path for top in ("tasks", "flows") for path in (REPOSITORY / top).rglob("*.py"))


def declared(tree: ast.Module) -> list[str] | None:
    """The literal value of ``__all__``, ``None`` where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Public names a module defines: functions and classes, and all of them with constants and aliases."""
    objects, constants = set(), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            objects.add(node.name)
        elif isinstance(node, ast.Assign):
            constants |= {part.id for to in node.targets for part in ast.walk(to) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            constants.add(node.target.id)
    public = {name for name in objects if not name.startswith("_")}
    return public, public | {name for name in constants if not name.startswith("_")}


def test_files_are_found() -> None:
    assert len(MODULES) > 20 and len(PACKAGES) > 10 and len(OTHERS) > 5


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_exports_what_it_defines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = declared(tree)
    assert names is not None, f"{dotted(path)} has no __all__"
    objects, everything = defined(tree)
    passed_on = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samcl_core.")
        for alias in node.names
    }
    assert sorted(objects - set(names)) == [], "public functions and classes that __all__ leaves out"
    assert sorted(set(names) - everything - passed_on) == [], "names in __all__ that the module does not define"
    assert len(names) == len(set(names)), "names given twice"


@pytest.mark.parametrize("path", OTHERS, ids=dotted)
def test_other_modules_export_nothing_they_do_not_have(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        (name.asname or name.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    missing = set(declared(tree) or ()) - defined(tree)[1] - imported
    assert sorted(missing) == []


@pytest.mark.parametrize("path", PACKAGES, ids=dotted)
def test_a_package_offers_public_names_of_its_own_modules(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = declared(tree) or []
    package = importlib.import_module(dotted(path))
    offered = {}
    for name in names:
        value = getattr(package, name)
        home = getattr(value, "__module__", None)
        if isinstance(home, str) and home.startswith("samcl_core.") and hasattr(value, "__qualname__"):
            offered[name] = home
    strangers = {name: home for name, home in offered.items() if not home.startswith(dotted(path) + ".")}
    assert strangers == {}, "names of other packages"
    for name, home in offered.items():
        assert name in importlib.import_module(home).__all__, f"{name} is not public in {home}"


@pytest.mark.parametrize("path", PACKAGES, ids=dotted)
def test_a_package_lists_all_it_imports_by_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.asname or name.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(dotted(path) + ".")
        for name in node.names
    }
    public = {name for name in imported if not name.startswith("_")}
    assert sorted(public - set(declared(tree) or [])) == []
    assert ast.get_docstring(tree) not in (None, "TODO.")
