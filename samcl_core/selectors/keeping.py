"""What the two kinds of selector state share: which class may be added, and how many bytes each one takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.files import canonical_json
from samcl_core.selectors.choosing import check_classes

__all__ = ["check_new", "json_size", "learnt", "stored_bytes"]


def check_new(name: str, embeddings: Tensor, known: Collection[str], dim: int | None) -> None:
    """Refuse a class that the state has, or whose embeddings do not fit.

    Raises:
        BankError: the class is there, is empty, has another width than ``dim`` or values that are not finite.
    """
    if name in known:
        raise BankError(f"the selector already knows {name!r}, expected a new domain")
    check_classes({name: embeddings})
    if dim not in (None, embeddings.shape[1]):
        raise BankError(f"embeddings of {name} have width {embeddings.shape[1]}, expected {dim}")


def learnt(classes: Mapping[str, Any], natural: Collection[str]) -> tuple[str, ...]:
    """Names of the classes with a module, in the order of arrival."""
    return tuple(name for name in classes if name not in natural)


def json_size(value: Any) -> int:
    """Bytes of a JSON value without spaces."""
    return len(canonical_json(value).encode())


def stored_bytes(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a whole state: the safetensors file with its header, and the JSON values without spaces."""
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    return len(save(own)) + json_size(values)
