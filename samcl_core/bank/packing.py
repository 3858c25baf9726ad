"""Trained tensors in fewer bytes: in half precision, or in 8 bits with a scale for each row. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from samcl_core.errors import BankError

__all__ = ["DEFAULT_DTYPE", "SCALE", "ModuleDtype", "pack", "packed_shapes", "unpack"]

ModuleDtype = Literal["float32", "float16", "int8"]
DEFAULT_DTYPE: ModuleDtype = "float16"

SCALE = ":scale"
_LEVELS = 127
_HALF = torch.finfo(torch.float16)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pack(tensors: Mapping[str, Tensor], dtype: ModuleDtype | None = None) -> dict[str, Tensor]:
    """``tensors`` as they are stored.

    ``float16`` rounds every tensor to half precision. ``int8`` keeps tensors of two and more dimensions as whole
    numbers from -127 to 127 times a step, which is the largest weight of their row (first index) / 127; the steps stand
    beside them as ``NAME:scale`` of shape (rows,). Its vectors are half precision. A tensor with weights beyond the
    range of half precision stays float32.

    Args:
        tensors: float tensors by name, on any device.
        dtype: ``None`` is ``float16``.

    Raises:
        ValueError: the dtype is unknown, or a name ends with ``:scale``.
    """
    dtype = dtype or DEFAULT_DTYPE
    if dtype not in get_args(ModuleDtype):
        raise ValueError(f"dtype is {dtype!r}, expected one of {list(get_args(ModuleDtype))}")
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            raise ValueError(f"a tensor is called {name!r}; names with {SCALE!r} are those of stored scales")
        value = tensor.detach().cpu().float()
        if dtype == "float32" or not bool(torch.isfinite(value.half()).all()):
            packed[name] = value
        elif dtype == "int8" and value.ndim > 1 and value.numel():
            packed[name], packed[name + SCALE] = _quantized(value)
        else:
            packed[name] = value.half()
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in stored tensors, as float32 by name. Tensors that are float32 are returned themselves.

    Raises:
        BankError: a scale is missing, has no tensor or does not fit it, or a tensor holds no weights.
    """
    return {name: _value(tensors[name], tensors.get(name + SCALE)) for name in packed_shapes(tensors)}


def packed_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape of the weights in stored tensors, sorted by name.

    Raises:
        BankError: as ``unpack``.
    """
    shapes = {name: tuple(tensors[name].shape) for name in sorted(tensors) if not name.endswith(SCALE)}
    for name, shape in shapes.items():
        _check(name, tensors[name], tensors.get(name + SCALE), shape)
    lonely = sorted(set(tensors) - set(shapes) - {name + SCALE for name in shapes})
    if lonely:
        raise BankError(f"tensors {lonely} are scales of tensors that are not there")
    return shapes


def _check(name: str, tensor: Tensor, scale: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor.dtype in _FLOATS and scale is None:
        return
    if tensor.dtype != torch.int8 or scale is None:
        beside = "no scale" if scale is None else "a scale"
        raise BankError(f"tensor {name} is {tensor.dtype} with {beside}, expected floats, or torch.int8 with a scale")
    if scale.dtype not in _FLOATS or not shape or tuple(scale.shape) != shape[:1]:
        found = f"{scale.dtype} {tuple(scale.shape)}"
        raise BankError(f"the scale of {name} {shape} is {found}, expected one float for each row")


def _quantized(value: Tensor) -> tuple[Tensor, Tensor]:
    largest = value.flatten(1).abs().amax(1)
    exact = largest / _LEVELS
    # A step below the normal numbers of half precision would itself be a rough one.
    is_normal = bool(((exact == 0) | (exact >= _HALF.tiny)).all())
    scale = exact.half() if is_normal else exact
    steps = _rows(scale.float(), value.ndim)
    levels = (value / steps.where(steps > 0, 1)).round().clamp(-_LEVELS, _LEVELS)
    return levels.to(torch.int8), scale


def _value(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor.float() if scale is None else tensor.float() * _rows(scale.float(), tensor.ndim)


def _rows(scale: Tensor, ndim: int) -> Tensor:
    return scale.reshape(-1, *[1] * (ndim - 1))
