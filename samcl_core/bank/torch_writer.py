"""Write objects of classes that we do not have into a ``torch.save`` file: the inverse of ``torch_reader``.

The published scripts load pickled layers, one of them of a class of their own. Its name is all that a pickle holds of
a class, so the file can be written without the class, instruction by instruction.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from samcl_core.bank.torch_reader import Record

__all__ = ["layer_record", "torch_file_bytes"]

_EPOCH = (1980, 1, 1, 0, 0, 0)

# Tables that ``torch.nn.Module.__init__`` makes, in its order; all empty.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class _Ordered(dict[str, Any]):
    """Written as ``collections.OrderedDict``."""


def layer_record(
    name: str, parameters: Mapping[str, Tensor], layers: Mapping[str, Record], attributes: Mapping[str, Any]
) -> Record:
    """A ``torch.nn.Module`` of class ``"module Class"`` in eval mode, as data.

    Args:
        name: module and class, separated by a space.
        parameters: its own parameters.
        layers: its children.
        attributes: its other attributes (numbers, texts, tuples).
    """
    state: dict[str, Any] = {
        "training": False,
        "_parameters": dict(parameters),
        "_buffers": {},
        "_non_persistent_buffers_set": set(),
        "_backward_pre_hooks": _Ordered(),
        "_backward_hooks": _Ordered(),
        "_is_full_backward_hook": None,
    }
    state |= {hook: _Ordered() for hook in _HOOKS}
    return Record(name, {**state, "_modules": dict(layers), **attributes})


def torch_file_bytes(value: Any, stem: str) -> bytes:
    """A file that ``torch.load`` reads; same value, same bytes.

    Args:
        value: dicts, lists, tuples, numbers, texts, ``None``, CPU float32 tensors (which become parameters) and
            ``Record``.
        stem: name of the folder inside of the file.
    """
    pickler = _Pickler()
    pickler.put(value)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        entries = {"data.pkl": b"\x80\x02" + b"".join(pickler.code) + b".", "byteorder": b"little"}
        entries |= {f"data/{key}": data for key, data in enumerate(pickler.storages)}
        for name, data in {**entries, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"{stem}/{name}", _EPOCH), data)
    return stream.getvalue()


class _Pickler:
    """Pickle protocol 2 for the few types that a module file holds."""

    def __init__(self) -> None:
        self.code: list[bytes] = []
        self.storages: list[bytes] = []

    def put(self, value: Any) -> None:
        """Append the instructions that leave ``value`` on the stack."""
        if isinstance(value, Record):
            self._name(value.name)
            self.code.append(b")\x81")
            self.put(value.state)
            self.code.append(b"b")
        elif isinstance(value, Tensor):
            self._parameter(value)
        elif isinstance(value, _Ordered):
            self._ordered()
        elif isinstance(value, set):
            self._name("__builtin__ set")
            self.code.append(b"]\x85R")
        elif isinstance(value, dict):
            self.code.append(b"}(")
            for key, item in value.items():
                self.put(key)
                self.put(item)
            self.code.append(b"u")
        elif isinstance(value, list | tuple):
            self.code.append(b"](" if isinstance(value, list) else b"(")
            for item in value:
                self.put(item)
            self.code.append(b"e" if isinstance(value, list) else b"t")
        else:
            self._scalar(value)

    def _scalar(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.code.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            self.code.append(b"J" + struct.pack("<i", value))
        elif isinstance(value, float):
            self.code.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode()
            self.code.append(b"X" + struct.pack("<I", len(text)) + text)
        else:
            raise TypeError(f"cannot write {type(value).__name__} to a module file")

    def _name(self, text: str) -> None:
        module, name = text.split(" ")
        self.code.append(f"c{module}\n{name}\n".encode())

    def _ordered(self) -> None:
        self._name("collections OrderedDict")
        self.code.append(b")R")

    def _parameter(self, tensor: Tensor) -> None:
        data = tensor.detach().cpu().float().contiguous()
        self._name("torch._utils _rebuild_parameter")
        self.code.append(b"(")
        self._name("torch._utils _rebuild_tensor_v2")
        self.code.append(b"((")
        self.put("storage")
        self._name("torch FloatStorage")
        self.put(str(len(self.storages)))
        self.put("cpu")
        self.put(data.numel())
        self.code.append(b"tQ")
        for value in (0, tuple(data.shape), tuple(data.stride()), False):
            self.put(value)
        self._ordered()
        self.code.append(b"tR\x88")
        self._ordered()
        self.code.append(b"tR")
        self.storages.append(data.numpy().astype("<f4").tobytes())
