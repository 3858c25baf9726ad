"""``sam_nano``: the official SAM classes with small numbers, for machines without a GPU and for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from samcl_core.backbones.checkpoints import load_state, read_state, verified
from samcl_core.backbones.frozen import draw_weights, weights_digest
from samcl_core.backbones.sam import SamBackbone
from samcl_core.backbones.weights import FOLDER
from samcl_core.errors import CheckpointMismatch
from samcl_core.files import sha256_file, write_atomic, write_json

__all__ = [
    "NANO",
    "NANO_WEIGHTS",
    "NanoConfig",
    "build_nano",
    "load_nano",
    "nano_backbone",
    "save_nano",
    "tiny_backbone",
]

NANO_WEIGHTS = FOLDER / "sam_nano.safetensors"
"""Trained weights that ship with the package; ``sam_nano.json`` beside them holds their architecture and origin."""


@dataclass(frozen=True)
class NanoConfig:
    """Numbers of a small SAM. The token grid has ``image_size // patch_size`` cells a side.

    Attributes:
        image_size: side of the model input in pixels.
        patch_size: side of a patch in pixels.
        width: channels of the encoder.
        depth: blocks of the encoder.
        heads: attention heads of the encoder.
        window: side of an attention window in tokens.
        global_blocks: blocks without windows.
        prompt_dim: channels of neck, prompt encoder and decoder.
        decoder_heads: attention heads of the decoder.
        decoder_mlp: hidden width of the decoder's MLPs.
        mask_channels: hidden channels of the encoder of mask prompts.
    """

    image_size: int = 128
    patch_size: int = 8
    width: int = 96
    depth: int = 8
    heads: int = 4
    window: int = 8
    global_blocks: tuple[int, ...] = (1, 3, 5, 7)
    prompt_dim: int = 64
    decoder_heads: int = 4
    decoder_mlp: int = 256
    mask_channels: int = 16

    def as_json(self) -> dict[str, Any]:
        """The values as JSON, as they stand beside trained weights."""
        return {**asdict(self), "global_blocks": list(self.global_blocks)}


NANO = NanoConfig()
_TINY = NanoConfig(64, 8, 16, 4, 2, 3, (1, 3), 16, 2, 32, 4)


def build_nano(config: NanoConfig = NANO) -> nn.Module:
    """An official ``Sam`` of these numbers with random weights; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        sam: nn.Module = _build(config)
    return sam


def _build(config: NanoConfig) -> Any:
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = config.image_size // config.patch_size
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        out_chans=config.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_blocks,
    )
    prompts = PromptEncoder(
        embed_dim=config.prompt_dim,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=2, embedding_dim=config.prompt_dim, mlp_dim=config.decoder_mlp, num_heads=config.decoder_heads
    )
    decoder = MaskDecoder(
        transformer_dim=config.prompt_dim, transformer=transformer, iou_head_hidden_dim=config.prompt_dim
    )
    return Sam(encoder, prompts, decoder)


def load_nano(weights: Path = NANO_WEIGHTS, sha256: str | None = None) -> SamBackbone:
    """``sam_nano`` in float32 with the weights of a file; untrained, drawn from names, where there is no ``weights``.

    Args:
        weights: a ``.safetensors`` file with a JSON file of the same stem beside it: ``{"config": {...}}``.
        sha256: digest the file must have; ``None`` takes the one it has.

    Raises:
        CheckpointMismatch: digest, architecture, keys or shapes are not the expected ones.
    """
    if not weights.exists() and sha256 is None:
        return nano_backbone("sam_nano", NANO)
    digest = verified(weights, sha256 or sha256_file(weights))
    _check_config(weights.with_suffix(".json"))
    sam = build_nano(NANO)
    state, is_pretrained = read_state(weights)
    load_state(sam, state, str(weights))
    return SamBackbone("sam_nano", sam, sha256=digest, is_pretrained=is_pretrained)


def _check_config(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["config"]
    except FileNotFoundError as exc:
        raise CheckpointMismatch(f"{path} is missing; it must hold the architecture of the weights beside it") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointMismatch(f"{path} does not hold the architecture of the weights beside it: {exc!r}") from exc
    expected = NANO.as_json()
    if found != expected:
        raise CheckpointMismatch(f"{path}: architecture is {found}, expected {expected}")


def nano_backbone(name: str, config: NanoConfig) -> SamBackbone:
    """A small SAM with untrained weights drawn from ``name``; its ``sha256`` is the digest of those weights."""
    sam = build_nano(config)
    draw_weights(sam, name)
    return SamBackbone(name, sam, sha256=weights_digest(sam), is_pretrained=False)


def tiny_backbone() -> SamBackbone:
    """The smallest real SAM, for tests: 64 px, four blocks of width 16, windows of 3 on a grid of 8, untrained."""
    return nano_backbone("tiny", _TINY)


def save_nano(module: nn.Module, path: Path, about: Mapping[str, Any] | None = None) -> str:
    """Write trained weights of ``sam_nano`` in half precision, and a JSON file beside them, as ``load_nano`` reads it.

    Args:
        module: the trained network.
        path: the ``.safetensors`` file.
        about: more entries of the JSON file, beside ``schema_version`` and ``config``: where the weights come from.

    Returns:
        Hex sha256 of the file of weights.

    Raises:
        CheckpointMismatch: ``module`` is no ``sam_nano``, or a weight is beyond the range of half precision.
    """
    state = {key: _half(key, value) for key, value in sorted(module.state_dict().items())}
    load_state(build_nano(NANO), state, "to be saved")
    write_json(path.with_suffix(".json"), {"schema_version": 1, "config": NANO.as_json(), **(about or {})})
    write_atomic(path, save(state))
    return sha256_file(path)


def _half(key: str, value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    half = value.half()
    if not bool(torch.isfinite(half).all()):
        largest, limit = float(value.abs().max()), torch.finfo(torch.float16).max
        raise CheckpointMismatch(f"{key} reaches {largest:.4g}, and half precision ends at {limit:.0f}")
    return half
