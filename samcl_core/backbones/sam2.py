"""SAM 2.1: the official ``sam2`` network on single images, run as a frozen prefix and an adapted suffix."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samcl_core.backbones.base import AdapterSite, Decoding, Masks, Prefix, PrefixPlan, Prompts, SuffixHooks
from samcl_core.backbones.blocks import run_block
from samcl_core.backbones.frozen import decode_by_count, draw_weights, freeze, scaled, squash, weights_digest
from samcl_core.backbones.tokens import BlockTap

__all__ = ["SAM2_NAMES", "Sam2Backbone", "build_sam2", "tiny_sam2_backbone"]

SAM2_NAMES = {
    "sam2.1_hiera_tiny": "sam2.1_hiera_t.yaml",
    "sam2.1_hiera_small": "sam2.1_hiera_s.yaml",
    "sam2.1_hiera_base_plus": "sam2.1_hiera_b+.yaml",
    "sam2.1_hiera_large": "sam2.1_hiera_l.yaml",
}

_DEFAULT_PLAN = PrefixPlan()
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_STAGE = 2  # modules act in the third stage, as wide as the level that feeds the mask decoder
_TOP_DOWN = [2, 3]

# What the official ``build_sam2`` adds to the configuration file for evaluation.
_POSTPROCESSING = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


def build_sam2(name: str, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """The official SAM 2.1 called ``name`` (a key of ``SAM2_NAMES``), random weights; the global random state is kept.

    The package's own configuration file is read directly: unlike the official ``build_sam2`` this neither needs nor
    disturbs Hydra's process-wide state, and loads nothing.

    Args:
        name: which network.
        overrides: values by dotted path below ``model``, for smaller networks.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    text = files("sam2").joinpath("configs", "sam2.1", SAM2_NAMES[name]).read_text(encoding="utf-8")
    config = OmegaConf.create(text)
    OmegaConf.update(config, "model.sam_mask_decoder_extra_args", dict(_POSTPROCESSING), force_add=True)
    for path, value in (overrides or {}).items():
        OmegaConf.update(config, f"model.{path}", value)
    OmegaConf.resolve(config)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = instantiate(config.model, _recursive_=True)
    return model


class Sam2Backbone:
    """A SAM 2.1 of any size. Modules act in the trunk's third stage, after its first block with global attention.

    In the tiny network these are blocks 6 to 9. Nothing acts at the neck. The decoder's high-resolution features come
    from the first two stages alone, so they belong to the prefix (``side``).
    """

    def __init__(self, name: str, model: Any, *, sha256: str, is_pretrained: bool) -> None:
        freeze(model)
        self._model = model
        trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
        if neck.fpn_top_down_levels != _TOP_DOWN or neck.fuse_type != "sum" or model.image_encoder.scalp != 1:
            raise ValueError(f"{name}: the neck has top-down levels {neck.fpn_top_down_levels}, expected {_TOP_DOWN}")
        first, last = trunk.stage_ends[_STAGE - 1] + 1, trunk.stage_ends[_STAGE]
        split = min(index for index in trunk.global_att_blocks if first <= index <= last) + 1
        blocks = tuple(range(split, last + 1))
        self.name = name
        self.sha256 = sha256
        self.is_pretrained = is_pretrained
        self.image_size = int(model.image_size)
        self.preprocessing = f"sam2-squash-bilinear-{self.image_size}-v1"
        self.token_blocks = range(first + 1, last + 1)
        self.site = AdapterSite(
            dim=int(trunk.blocks[last].dim_out),
            neck_dim=None,
            grid=int(model.sam_image_embedding_size),
            blocks=blocks,
            windows=tuple(int(trunk.blocks[index].window_size) for index in blocks),
            heads=int(trunk.blocks[last].attn.num_heads),
            decoder={key: tuple(value.shape) for key, value in model.sam_mask_decoder.named_parameters()},
            decoder_dim=int(model.sam_mask_decoder.transformer_dim),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._model.device
        return device

    @property
    def module(self) -> nn.Module:
        """The frozen official ``SAM2Base``."""
        module: nn.Module = self._model
        return module

    def to(self, device: torch.device | str) -> Sam2Backbone:
        """Move the weights; returns itself."""
        self._model.to(device)
        return self

    def weights_digest(self) -> str:
        """Hex sha256 over all parameters and buffers as they are now."""
        return weights_digest(self._model)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB to (3, S, S) float32: squashed, to 0..1, then ImageNet's mean and deviation.

        Raises:
            ImageError: ``image`` is not (H, W, 3) uint8.
        """
        pixels = torch.from_numpy(squash(image, self.image_size)).permute(2, 0, 1).contiguous().float() / 255
        mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    @torch.no_grad()
    def prefix(self, pixels: Tensor, plan: PrefixPlan = _DEFAULT_PLAN, tap: BlockTap | None = None) -> Prefix:
        """(B, 3, S, S) preprocessed pixels to tokens before the first adapted block, their mean, and the side features.

        Side features: ``high_res_0`` (B, D/8, S/4, S/4) and ``high_res_1`` (B, D/4, S/8, S/8) for D decoder channels,
        always and no others. With the split ``encoder`` the tokens are the decoder's input. ``tap`` sees the input of
        each of the ``token_blocks`` below its depth.

        Raises:
            ConfigError: ``plan`` asks for side features that there are not.
        """
        plan.check(self.site)
        trunk = self._model.image_encoder.trunk
        x = trunk.patch_embed(pixels)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        stages = []
        for index, block in enumerate(trunk.blocks[: self.site.blocks[0]]):
            if tap is not None and index in self.token_blocks and index < tap.depth:
                tap(block, x)
            x = block(x)
            if index in trunk.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        decoder = self._model.sam_mask_decoder
        side = {
            "high_res_0": decoder.conv_s0(self._lateral(0, stages[0])),
            "high_res_1": decoder.conv_s1(self._lateral(1, stages[1])),
        }
        prefix = Prefix(tokens=x, embedding=x.mean(dim=(1, 2)), side=side)
        if plan.split == "encoder":
            return Prefix(self.encode(prefix, tap=tap).permute(0, 2, 3, 1), prefix.embedding, side, "encoder")
        if tap is not None and tap.depth > self.site.blocks[0]:
            self.encode(prefix, tap=tap)
        return prefix

    @torch.no_grad()
    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed pixels to the (B, G, G, C) input of the first of ``token_blocks``."""
        trunk = self._model.image_encoder.trunk
        x: Tensor = trunk.patch_embed(pixels)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        for block in trunk.blocks[: self.token_blocks[0]]:
            x = block(x)
        return x

    def block(self, index: int) -> Any:
        """One block of the trunk."""
        return self._model.image_encoder.trunk.blocks[index]

    def suffix(
        self, prefix: Prefix, prompts: Prompts, hooks: SuffixHooks | None = None, *, training: bool = False
    ) -> Masks:
        """The rest of trunk and neck, prompt encoder and mask decoder, as the official image predictor runs them.

        Mask token 0 while ``training``; otherwise token 0 where its stability is at least 0.98, else the best of tokens
        1 to 3 by predicted IoU.

        Returns:
            Logits (B, 1, S/4, S/4) and predicted IoU (B, 1). The logits are as the decoder gives them: the official
            predictor upsamples these and clamps only its low-resolution output, to -32..32.

        Raises:
            PromptError: shapes of points, labels and boxes do not agree.
            BankError: the prefix is not what the hooks need.
        """
        if hooks is not None:
            hooks.begin(prefix)
        features = self.encode(prefix, hooks)
        everything = torch.arange(len(features), device=features.device)

        def decode(rows: Any, part: Prompts) -> Masks:
            side = {name: value[rows].to(features.dtype) for name, value in prefix.side.items()}
            call = self._call(features[rows], everything[rows], side, part, training)
            return call.plain() if hooks is None else hooks.decode(call)

        return decode_by_count(scaled(prompts, self.image_size, 4 * self.site.grid), decode)

    def encode(self, prefix: Prefix, hooks: SuffixHooks | None = None, tap: BlockTap | None = None) -> Tensor:
        """The rest of trunk and neck: (B, D, G, G) image embeddings for the mask decoder."""
        trunk = self._model.image_encoder.trunk
        x = prefix.tokens.to(trunk.pos_embed.dtype)
        if prefix.split == "encoder":
            return x.permute(0, 3, 1, 2).contiguous()
        for index in self.site.blocks:
            if tap is not None and index < tap.depth:
                tap(trunk.blocks[index], x)
            x = run_block(trunk.blocks[index], x, index, hooks)
        middle = x.permute(0, 3, 1, 2)
        for block in trunk.blocks[self.site.blocks[-1] + 1 :]:
            x = block(x)
        top = self._lateral(3, x.permute(0, 3, 1, 2))
        mode = self._model.image_encoder.neck.fpn_interp_model
        top_down = F.interpolate(
            top, scale_factor=2.0, mode=mode, align_corners=None if mode == "nearest" else False, antialias=False
        )
        no_memory: Tensor = self._model.no_mem_embed.reshape(1, -1, 1, 1)
        return self._lateral(2, middle) + top_down + no_memory

    def _lateral(self, level: int, x: Tensor) -> Tensor:
        """The neck's own convolution of one level; level 0 is the first stage, and the last in the neck's list."""
        out: Tensor = self._model.image_encoder.neck.convs[3 - level](x)
        return out

    def _call(
        self, features: Tensor, rows: Tensor, side: dict[str, Tensor], prompts: Prompts, training: bool
    ) -> Decoding:
        encoder = self._model.sam_prompt_encoder
        points, labels = _with_corners(prompts)
        sparse, dense = encoder(points=(points, labels), boxes=None, masks=prompts.masks)
        run = _decode_training if training else _decode
        decoder = self._model.sam_mask_decoder
        return Decoding(decoder, features, encoder.get_dense_pe(), sparse, dense, rows, run, side, training)


def _decode(call: Decoding, decoder: Any) -> Masks:
    logits, iou = decoder(**_inputs(call), multimask_output=False)[:2]
    return Masks(logits, iou)


def _decode_training(call: Decoding, decoder: Any) -> Masks:
    """Mask token 0, whatever its stability."""
    logits, iou = decoder.predict_masks(**_inputs(call))[:2]
    return Masks(logits[:, :1], iou[:, :1])


def _inputs(call: Decoding) -> dict[str, Any]:
    return {
        "image_embeddings": call.features,
        "image_pe": call.position,
        "sparse_prompt_embeddings": call.sparse,
        "dense_prompt_embeddings": call.dense,
        "repeat_image": False,
        "high_res_features": [call.side["high_res_0"], call.side["high_res_1"]],
    }


def _with_corners(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Points with a box as two more points before them (labels 2 and 3), as the official image predictor does."""
    if prompts.boxes is None:
        return prompts.points, prompts.labels
    corners = prompts.boxes.reshape(-1, 2, 2)
    names = torch.tensor([[2, 3]], dtype=prompts.labels.dtype, device=prompts.labels.device)
    labels = torch.cat([names.expand(len(prompts), -1), prompts.labels], dim=1)
    return torch.cat([corners, prompts.points], dim=1), labels


def tiny_sam2_backbone() -> Sam2Backbone:
    """The smallest real SAM 2.1, for tests: 64 px, seven blocks from width 16, a 4 x 4 grid, untrained."""
    model = build_sam2(
        "sam2.1_hiera_tiny",
        {
            "image_size": 64,
            "image_encoder.trunk.embed_dim": 16,
            "image_encoder.trunk.stages": [1, 1, 4, 1],
            "image_encoder.trunk.global_att_blocks": [3, 5],
            "image_encoder.trunk.window_spec": [8, 4, 3, 2],
            "image_encoder.neck.d_model": 32,
            "image_encoder.neck.position_encoding.num_pos_feats": 32,
            "image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
            "memory_attention.d_model": 32,
            "memory_attention.num_layers": 1,
            "memory_attention.layer.d_model": 32,
            "memory_attention.layer.dim_feedforward": 32,
            "memory_attention.layer.self_attention.embedding_dim": 32,
            "memory_attention.layer.cross_attention.embedding_dim": 32,
            "memory_encoder.fuser.layer.dim": 256,
        },
    )
    draw_weights(model, "tiny_sam2")
    return Sam2Backbone("tiny_sam2", model, sha256=weights_digest(model), is_pretrained=False)
