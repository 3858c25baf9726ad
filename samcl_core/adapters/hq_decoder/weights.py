"""Published HQ-SAM weights as tensors of a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from samcl_core.adapters.base import ModuleTensors
from samcl_core.backbones.checkpoints import read_state
from samcl_core.errors import CheckpointMismatch, CheckpointMissing
from samcl_core.files import sha256_file

__all__ = ["read_weights"]

_PREFIX = "mask_decoder."


def read_weights(path: Path, sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> ModuleTensors:
    """The HQ tensors of a checkpoint: the whole model's (keys ``mask_decoder.hf_token.weight`` ...) or the decoder's.

    Nothing in the file is executed; its other tensors, the frozen SAM's, are left out.

    Args:
        path: ``.pth`` or ``.safetensors``.
        sha256: digest the file must have.
        shapes: name to shape of the tensors that are wanted, names without ``mask_decoder.``.

    Returns:
        float32 tensors on the CPU in the order of ``shapes``.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointMismatch: it has another digest, or lacks a tensor, or has it in another shape.
        UnsafeFileError: it holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointMissing(f"there is no file {path}", hint="correct adapter.weights in params.yaml")
    if (found := sha256_file(path)) != sha256:
        raise CheckpointMismatch(
            f"{path} has sha256 {found}, expected {sha256}",
            hint=f"fetch the file again, or correct adapter.sha256 (samcl checkpoints hash {path})",
        )
    state, _ = read_state(path)
    named = {name: state.get(_PREFIX + name, state.get(name)) for name in shapes}
    return {name: _fitting(path, name, named[name], shape) for name, shape in shapes.items()}


def _fitting(path: Path, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if tensor is None:
        raise CheckpointMismatch(
            f"{path} has no tensor {_PREFIX}{name}, so it is no HQ-SAM", hint="use an HQ-SAM checkpoint"
        )
    if tuple(tensor.shape) != shape:
        raise CheckpointMismatch(
            f"{path}: {name} has shape {tuple(tensor.shape)}, expected {shape}",
            hint="use the HQ-SAM checkpoint of the same backbone",
        )
    return tensor.float().contiguous()
