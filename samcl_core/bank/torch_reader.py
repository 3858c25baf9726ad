"""Read a ``torch.save`` file as plain data, executing nothing of it.

A pickle is a program for a small stack machine, and loading it with ``pickle`` may call anything. Here the program is
only disassembled (``pickletools`` parses, it never runs), and the few instructions that ``torch.save`` writes are
carried out by the interpreter below, which knows no callable but its own. Every other instruction or name is refused.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samcl_core.errors import UnsafeFileError

__all__ = ["MAX_FILE_BYTES", "Record", "read_torch_file"]

MAX_FILE_BYTES = 512 << 20
_MAX_ENTRIES = 4096
_MAX_PICKLE_BYTES = 4 << 20
_STORED = zipfile.ZIP_STORED

_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
}
_FUNCTIONS = frozenset(
    {
        "collections OrderedDict",
        "__builtin__ set",
        "builtins set",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
    }
)
_CLASSES = frozenset(
    {
        "module.SAMCL Extra",
        "module.SAMCL_2 Extra",
        "torch.nn.modules.linear Linear",
        "torch.nn.modules.normalization LayerNorm",
    }
)


@dataclass(frozen=True)
class _Name:
    """A global that the pickle asked for: a text, never the thing."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    num: int


class _Mark:
    """Where a group on the stack starts."""


@dataclass(eq=False)
class Record:
    """An object of a class we do not have, as data.

    Attributes:
        name: ``"module Class"``, one of the known ones.
        state: what would have become its attributes.
    """

    name: str
    state: dict[str, Any] = field(default_factory=dict)


def read_torch_file(path: Path) -> Any:
    """The object in a ``torch.save`` file: tensors, containers, numbers, texts, and ``Record`` for known classes.

    Raises:
        UnsafeFileError: the file is not a whole torch zip file, is larger than it may be, or holds an instruction, name
            or size that is not on the short list of what published modules need. Nothing was executed.
    """
    files = _read_zip(path)
    pickles = [name for name in files if name == "data.pkl"]
    if not pickles:
        raise _refused(path, "it has no data.pkl", "save it with torch.save of PyTorch 1.6 or newer")
    if files.get("byteorder", b"little") != b"little":
        raise _refused(path, f"its byte order is {files['byteorder']!r}, expected b'little'")
    return _Machine(path, files).run(files["data.pkl"])


def _refused(path: Path, why: str, hint: str = "use the file only if you trust where it came from") -> UnsafeFileError:
    return UnsafeFileError(f"{path} was refused, nothing of it was executed: {why}", hint=hint)


def _read_zip(path: Path) -> dict[str, bytes]:
    """Entry name (below the archive's one folder) to content."""
    if not path.is_file():
        raise _refused(path, "there is no such file", "check the path")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise _refused(path, f"it has {size} bytes, expected at most {MAX_FILE_BYTES}")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, size)
            return {entry.filename.split("/", 1)[1]: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, LookupError, RuntimeError) as exc:
        raise _refused(path, f"it is not a whole torch zip file ({exc})", "fetch the file again") from exc


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise _refused(path, f"it has {len(entries)} entries, expected at most {_MAX_ENTRIES}")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise _refused(path, "two entries have one name")
    for entry in entries:
        parts = entry.filename.split("/")
        if (
            len(parts) < 2
            or parts[0] != names[0].split("/")[0]
            or ".." in parts
            or "" in parts
            or "\\" in entry.filename
        ):
            raise _refused(path, f"entry {entry.filename!r} is not below one common folder")
        if entry.compress_type != _STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise _refused(
                path, f"entry {entry.filename!r} is compressed or encrypted; torch.save stores entries plainly"
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
            raise _refused(path, f"its pickle has {entry.file_size} bytes, expected at most {_MAX_PICKLE_BYTES}")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise _refused(path, f"its entries claim {total} bytes, the file has {size}")


class _Machine:
    """Interpreter of the pickle instructions that ``torch.save`` writes with protocol 2."""

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self._path = path
        self._files = files
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._budget = sum(len(data) for data in files.values())
        self._do: dict[str, Callable[[Any], None]] = {
            "PROTO": self._proto,
            "GLOBAL": self._global,
            "REDUCE": self._reduce,
            "NEWOBJ": self._newobj,
            "BUILD": self._build,
            "BINPERSID": self._persistent,
            "MARK": lambda _: self._stack.append(_Mark()),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE": lambda _: self._stack.append(tuple(self._group())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._group()),
            "SETITEM": lambda _: self._update([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._update(self._group()),
        }
        self._do |= dict.fromkeys(
            ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), self._stack.append
        )
        self._do |= dict.fromkeys(("BINGET", "LONG_BINGET"), self._recall)
        self._do |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._remember)

    def run(self, program: bytes) -> Any:
        """The value that the program leaves on the stack."""
        try:
            for instruction, argument, _ in pickletools.genops(program):
                if instruction.name == "STOP":
                    break
                if instruction.name not in self._do:
                    raise _refused(self._path, f"its pickle uses the instruction {instruction.name}")
                self._do[instruction.name](argument)
            (value,) = self._stack
        except UnsafeFileError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as exc:
            raise _refused(self._path, f"its pickle is not well formed ({type(exc).__name__})") from exc
        return value

    def _proto(self, version: int) -> None:
        if version != 2:
            raise _refused(self._path, f"its pickle has protocol {version}, torch.save writes 2")

    def _global(self, text: str) -> None:
        if text not in _FUNCTIONS and text not in _CLASSES and text not in _STORAGES:
            raise _refused(self._path, f"its pickle asks for {text.replace(' ', '.')}")
        self._stack.append(_Name(text))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or function.text not in _FUNCTIONS or not isinstance(arguments, tuple):
            raise _refused(self._path, f"its pickle calls {_shown(function)}")
        if function.text == "torch._utils _rebuild_tensor_v2":
            self._stack.append(self._tensor(*arguments[:4]))
        elif function.text == "torch._utils _rebuild_parameter":
            self._stack.append(self._is_tensor(arguments[0]))
        elif function.text == "collections OrderedDict":
            self._stack.append({})
            self._update([part for pair in (arguments[0] if arguments else ()) for part in pair])
        else:
            self._stack.append(list(arguments[0]) if arguments else [])

    def _newobj(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, _Name) or name.text not in _CLASSES or arguments != ():
            raise _refused(self._path, f"its pickle creates {_shown(name)}")
        self._stack.append(Record(name.text))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise _refused(
                self._path, f"its pickle sets a state that is {type(state).__name__}, expected names to values"
            )
        if isinstance(target, Record):
            target.state.update(state)
        elif not isinstance(target, dict):
            # Attributes of a dict (a state dict's version table) say nothing that is needed here.
            raise _refused(self._path, f"its pickle sets the state of {type(target).__name__}")

    def _persistent(self, _: Any) -> None:
        reference = self._stack.pop()
        kind, storage, key, _location, num = reference
        if kind != "storage" or not isinstance(storage, _Name) or storage.text not in _STORAGES:
            raise _refused(self._path, f"its pickle refers to a {_shown(kind)} of {_shown(storage)}")
        if not isinstance(key, str) or not key.isdecimal() or not isinstance(num, int) or num < 0:
            raise _refused(self._path, f"its pickle refers to storage {_shown(key)} with {_shown(num)} numbers")
        self._stack.append(_Storage(_STORAGES[storage.text], key, num))

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        sizes = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
            raise _refused(self._path, f"its pickle describes a tensor with sizes {[_shown(n) for n in sizes[:9]]}")
        data = self._files.get(f"data/{storage.key}", b"")
        if len(data) != storage.num * storage.dtype.itemsize:
            raise _refused(self._path, f"storage {storage.key} has {len(data)} bytes, expected {storage.num} numbers")
        num = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        self._budget -= num * storage.dtype.itemsize
        if num > storage.num or (num and last >= storage.num) or self._budget < 0:
            raise _refused(
                self._path, f"its pickle describes a tensor {shape!r} beyond its storage of {storage.num} numbers"
            )
        if num == 0:
            return torch.empty(shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(shape, stride, offset).clone(memory_format=torch.contiguous_format)

    def _is_tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise _refused(self._path, f"its pickle makes a parameter of {type(value).__name__}")
        return value

    def _recall(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def _remember(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _tuple(self, num: int) -> None:
        group = tuple(self._stack[-num:])
        if len(group) < num or any(isinstance(value, _Mark) for value in group):
            raise _refused(self._path, "its pickle takes more from the stack than there is")
        self._stack[-num:] = [group]

    def _group(self) -> list[Any]:
        group: list[Any] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            group.append(value)
        return group[::-1]

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise _refused(self._path, f"its pickle appends to {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(values)

    def _update(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise _refused(self._path, f"its pickle sets items of {type(self._stack[-1]).__name__}")
        if not all(isinstance(key, str) for key in values[::2]):
            raise _refused(self._path, "its pickle has a key that is not a text")
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))


def _shown(value: Any) -> str:
    """A value for a message. Containers are not shown: nested ones can be written short and be endless to print."""
    if isinstance(value, _Name):
        return value.text.replace(" ", ".")
    return repr(value)[:100] if isinstance(value, str | int | float) or value is None else type(value).__name__
