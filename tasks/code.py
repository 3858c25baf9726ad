"""Which source code each stage runs: a digest of the import closure, so that changed code makes a stage stale."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import samcl_core
from samcl_core.errors import ConfigError, SamclError
from samcl_core.files import write_atomic
from samcl_core.stages import STAGES

__all__ = ["CODE_FILE", "check_code", "stage_closure", "stage_digest", "stage_digests", "write_code"]

CODE_FILE = "code.yaml"
_DATA_SUFFIXES = frozenset({".json", ".yaml", ".toml", ".safetensors"})
_HEADER = "# Digest of the source code that each stage imports. Written by the commands; do not edit.\n"


def stage_closure(stage: str, package: Path | None = None) -> tuple[Path, ...]:
    """Files of ``samcl_core`` that a stage can import, sorted: static imports, also those inside functions.

    Imports under ``if TYPE_CHECKING`` do not count. A package's data files (weights, tables) belong to its
    ``__init__``. A string that names a module of the package counts as an import (lazy tables).

    Args:
        stage: one of ``samcl_core.stages.STAGES``.
        package: the folder of ``samcl_core``; the installed one when ``None``.

    Raises:
        SamclError: the stage has no module.
    """
    return _Code(package).closure(stage)


def stage_digest(stage: str, package: Path | None = None) -> str:
    """Hex sha256 over names and contents of a stage's closure; line ends do not matter."""
    return _Code(package).digest(stage)


def stage_digests(package: Path | None = None) -> dict[str, str]:
    """Stage to digest of its code, for every stage of the graph."""
    code = _Code(package)
    return {stage: code.digest(stage) for stage in STAGES}


def write_code(root: Path) -> bool:
    """Bring a workspace's ``code.yaml`` up to the installed code; True when it changed."""
    path = root / CODE_FILE
    text = _HEADER + "".join(f"{stage}: {digest}\n" for stage, digest in stage_digests().items())
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_atomic(path, text.encode())
    return True


def check_code(root: Path, stage: str) -> None:
    """Make sure that ``code.yaml`` says what is installed: a step must not be recorded under other code.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds another digest for ``stage``.
    """
    hint = "samcl init --refresh"
    try:
        recorded = YAML(typ="safe", pure=True).load((root / CODE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(str(root / CODE_FILE), ["the file does not exist"], hint=hint) from exc
    except (OSError, UnicodeDecodeError, YAMLError) as exc:
        raise ConfigError(str(root / CODE_FILE), [f"cannot be read: {' '.join(str(exc).split())}"], hint=hint) from exc
    found = recorded.get(stage) if isinstance(recorded, dict) else None
    expected = stage_digest(stage)
    if found != expected:
        problem = f"{stage} is {str(found)[:12]}, the installed samcl is {expected[:12]}"
        raise ConfigError(CODE_FILE, [problem], hint=hint)


class _Code:
    """The files of a package as they are now, each read and parsed once: stages share most of them."""

    def __init__(self, package: Path | None) -> None:
        self._root = package or Path(samcl_core.__file__).parent
        self._files: dict[str, Path | None] = {}
        self._imports: dict[str, frozenset[str]] = {}
        self._contents: dict[Path, bytes] = {}

    def closure(self, stage: str) -> tuple[Path, ...]:
        start = f"{self._root.name}.stages.{stage}"
        if self._file(start) is None:
            raise SamclError(f"stage {stage!r} has no module {start}", hint="reinstall samcl")
        found: dict[str, Path] = {}
        waiting = {start}
        while waiting:
            name = waiting.pop()
            file = self._file(name)
            if file is None:
                continue
            found[name] = file
            waiting |= self._imported(name, file) - found.keys()
        files = set(found.values())
        for init in [file for file in files if file.name == "__init__.py"]:
            files |= {path for path in init.parent.iterdir() if path.suffix in _DATA_SUFFIXES}
        return tuple(sorted(files))

    def digest(self, stage: str) -> str:
        digest = hashlib.sha256()
        for file in self.closure(stage):
            data = self._content(file)
            digest.update(f"{file.relative_to(self._root).as_posix()}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()

    def _content(self, file: Path) -> bytes:
        if file not in self._contents:
            data = file.read_bytes()
            self._contents[file] = data if file.suffix == ".safetensors" else data.replace(b"\r\n", b"\n")
        return self._contents[file]

    def _file(self, name: str) -> Path | None:
        if name not in self._files:
            self._files[name] = _file_of(name, self._root)
        return self._files[name]

    def _imported(self, name: str, file: Path) -> frozenset[str]:
        if name not in self._imports:
            names = _imports(self._content(file), name, is_package=file.name == "__init__.py", root=self._root.name)
            self._imports[name] = frozenset([*names, *_parents(name)])
        return self._imports[name]


def _file_of(name: str, root: Path) -> Path | None:
    head, *rest = name.split(".")
    if head != root.name:
        return None
    path = root.joinpath(*rest)
    for candidate in (path / "__init__.py", path.with_suffix(".py") if rest else path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts)))


def _imports(source: bytes, name: str, *, is_package: bool, root: str) -> Iterator[str]:
    package = name if is_package else name.rpartition(".")[0]
    for node in _executed(ast.parse(source, name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                yield from _parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield base
            yield from _parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _named(node.value, package, root)


def _named(text: str, package: str, root: str) -> Iterator[str]:
    if text.startswith(f"{root}."):
        yield text
        yield from _parents(text)
    elif text.startswith(".") and text[1:].replace(".", "_").isidentifier():
        yield package + text


def _base(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    kept = parts[: len(parts) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        else:
            yield node
            waiting += ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"
