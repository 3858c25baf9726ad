"""Tensors on disk: safetensors whose bytes depend on the content alone, with one JSON value beside the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from samcl_core.errors import IntegrityError
from samcl_core.files import canonical_json, write_atomic

__all__ = ["load_tensors", "save_tensors", "tensor_bytes"]

# One metadata entry only: safetensors keeps entries in a hash map, so that two of them could be written in any order.
_META = "samcl"


def tensor_bytes(tensors: Mapping[str, Tensor], meta: Any = None) -> bytes:
    """A safetensors file as bytes: same tensors and ``meta`` (a JSON value), same bytes."""
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return save(contiguous, metadata={_META: canonical_json(meta)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
    """Write ``tensors`` and the JSON value ``meta`` to one file, atomically.

    Raises:
        SamclError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    write_atomic(path, tensor_bytes(tensors, meta))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors (on the CPU) and the JSON value of a file that ``save_tensors`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not a whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as stream:
            meta = json.loads((stream.metadata() or {}).get(_META, "null"))
            return {name: stream.get_tensor(name) for name in sorted(stream.keys())}, meta
    except (SafetensorError, ValueError, OSError) as exc:
        raise IntegrityError(f"{path} is not a whole safetensors file: {exc}") from exc
