"""SAM: the official ``segment_anything`` network, run as a frozen prefix and an adapted suffix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samcl_core.backbones.base import AdapterSite, Decoding, Masks, Prefix, PrefixPlan, Prompts, SuffixHooks
from samcl_core.backbones.blocks import run_block
from samcl_core.backbones.frozen import decode_by_count, freeze, scaled, squash, weights_digest
from samcl_core.backbones.tokens import BlockTap

__all__ = [
    "SAM_NAMES",
    "SamBackbone",
    "build_sam",
    "decode_batch",
    "high_frequency",
    "masks_of_tokens",
    "predicted_iou",
    "run_tokens",
]

_DEFAULT_PLAN = PrefixPlan()

SAM_NAMES = {"sam_vit_b": "vit_b", "sam_vit_l": "vit_l", "sam_vit_h": "vit_h"}


def build_sam(name: str) -> nn.Module:
    """The official SAM called ``name`` (a key of ``SAM_NAMES``), random weights; the global random state is kept."""
    # Here, not above: the package imports torchvision, and that takes longer than everything that needs no network.
    from segment_anything import sam_model_registry

    with torch.random.fork_rng(devices=[]):
        sam: nn.Module = sam_model_registry[SAM_NAMES[name]](checkpoint=None)
    return sam


class SamBackbone:
    """A SAM of any size. Modules act from block ``depth * 7 // 12`` on (block 7 of ViT-B), around the neck and in the
    mask decoder.

    Mask token 0 is returned (the official ``multimask_output=False``). Side features on demand: ``patches`` (G, G, C),
    the patch embedding without positions; ``high_frequency`` (3, S, S), see ``high_frequency``; ``first_global``
    (G, G, C), the output of the first block with global attention.
    """

    def __init__(self, name: str, sam: Any, *, sha256: str, is_pretrained: bool) -> None:
        freeze(sam)
        self._sam = sam
        # Images are prepared on the CPU: asking a GPU for these would wait for all it has to do.
        self._pixel_mean, self._pixel_std = sam.pixel_mean.cpu(), sam.pixel_std.cpu()
        encoder = sam.image_encoder
        blocks = tuple(range(len(encoder.blocks) * 7 // 12, len(encoder.blocks)))
        self.name = name
        self.sha256 = sha256
        self.is_pretrained = is_pretrained
        self.image_size = int(encoder.img_size)
        self.preprocessing = f"sam-squash-bilinear-{self.image_size}-v1"
        self.token_blocks = range(len(encoder.blocks))
        self.site = AdapterSite(
            dim=int(encoder.patch_embed.proj.out_channels),
            neck_dim=int(encoder.neck[0].out_channels),
            grid=self.image_size // int(encoder.patch_embed.proj.stride[0]),
            blocks=blocks,
            windows=tuple(int(encoder.blocks[index].window_size) for index in blocks),
            heads=int(encoder.blocks[-1].attn.num_heads),
            sides=self._sides(),
            decoder={key: tuple(value.shape) for key, value in sam.mask_decoder.named_parameters()},
            decoder_dim=int(sam.mask_decoder.transformer_dim),
        )

    def _sides(self) -> dict[str, tuple[int, ...]]:
        encoder = self._sam.image_encoder
        grid = self.image_size // int(encoder.patch_embed.proj.stride[0])
        tokens = (grid, grid, int(encoder.patch_embed.proj.out_channels))
        sides: dict[str, tuple[int, ...]] = {
            "patches": tokens,
            "high_frequency": (3, self.image_size, self.image_size),
        }
        if any(block.window_size == 0 for block in encoder.blocks):
            sides["first_global"] = tokens
        return sides

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._sam.device
        return device

    @property
    def module(self) -> nn.Module:
        """The frozen official ``Sam``."""
        module: nn.Module = self._sam
        return module

    def to(self, device: torch.device | str) -> SamBackbone:
        """Move the weights; returns itself."""
        self._sam.to(device)
        return self

    def weights_digest(self) -> str:
        """Hex sha256 over all parameters and buffers as they are now."""
        return weights_digest(self._sam)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB to (3, S, S) float32: squashed, then SAM's pixel mean and deviation (of 0..255).

        Raises:
            ImageError: ``image`` is not (H, W, 3) uint8.
        """
        pixels = torch.from_numpy(squash(image, self.image_size)).permute(2, 0, 1).float()
        normed: Tensor = (pixels - self._pixel_mean) / self._pixel_std
        return normed.contiguous()

    @torch.no_grad()
    def prefix(self, pixels: Tensor, plan: PrefixPlan = _DEFAULT_PLAN, tap: BlockTap | None = None) -> Prefix:
        """(B, 3, S, S) preprocessed pixels to tokens before the first adapted block or after the neck, and their mean.

        ``tap`` sees the input of each block below its depth.

        Raises:
            ConfigError: ``plan`` asks for side features that there are not.
        """
        plan.check(self.site)
        encoder = self._sam.image_encoder
        side: dict[str, Tensor] = {}
        x = encoder.patch_embed(pixels)
        if "patches" in plan.side:
            side["patches"] = x
        if "high_frequency" in plan.side:
            side["high_frequency"] = high_frequency(pixels)
        x = x + encoder.pos_embed
        first_global = next((i for i, block in enumerate(encoder.blocks) if block.window_size == 0), -1)
        split, depth = self.site.blocks[0], 0 if tap is None else tap.depth
        tokens = x
        for index, block in enumerate(encoder.blocks):
            is_needed = plan.split == "encoder" or ("first_global" in plan.side and index <= first_global)
            if index >= max(split, depth) and not is_needed:
                break
            if tap is not None and index < depth:
                tap(block, x)
            x = run_block(block, x, index, None)
            tokens = x if index == split - 1 else tokens
            if index == first_global and "first_global" in plan.side:
                side["first_global"] = x
        embedding = tokens.mean(dim=(1, 2))
        if plan.split == "encoder":
            tokens = encoder.neck(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return Prefix(tokens, embedding, side, plan.split)

    @torch.no_grad()
    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed pixels to the (B, G, G, C) input of the first block."""
        encoder = self._sam.image_encoder
        x: Tensor = encoder.patch_embed(pixels) + encoder.pos_embed
        return x

    def block(self, index: int) -> Any:
        """One block of the image encoder."""
        return self._sam.image_encoder.blocks[index]

    def suffix(
        self, prefix: Prefix, prompts: Prompts, hooks: SuffixHooks | None = None, *, training: bool = False
    ) -> Masks:
        """Adapted blocks, neck, prompt encoder and mask decoder; the hooks hear of ``training``.

        Returns:
            Logits (B, 1, S/4, S/4) for ViT-B's patch of 16 (four times the token grid) and predicted IoU (B, 1).

        Raises:
            PromptError: shapes of points, labels and boxes do not agree.
            BankError: the prefix is not what the hooks need.
        """
        if hooks is not None:
            hooks.begin(prefix)
        features = self.encode(prefix, hooks)
        prompts = scaled(prompts, self.image_size, 4 * self.site.grid)
        everything = torch.arange(len(features), device=features.device)

        def decode(rows: Any, part: Prompts) -> Masks:
            side = {name: value[rows] for name, value in prefix.side.items()}
            call = self._call(features[rows], everything[rows], side, part, training)
            return call.plain() if hooks is None else hooks.decode(call)

        return decode_by_count(prompts, decode)

    def encode(self, prefix: Prefix, hooks: SuffixHooks | None = None) -> Tensor:
        """Adapted blocks and neck: (B, neck_dim, G, G) image embeddings for the mask decoder."""
        encoder = self._sam.image_encoder
        x = prefix.tokens.to(encoder.pos_embed.dtype)
        if prefix.split == "encoder":
            return x.permute(0, 3, 1, 2).contiguous()
        for index in self.site.blocks:
            x = run_block(encoder.blocks[index], x, index, hooks)
        if hooks is not None:
            x = hooks.neck_input(x)
        features: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
        return features if hooks is None else hooks.neck_output(features)

    def _call(
        self, features: Tensor, rows: Tensor, side: dict[str, Tensor], prompts: Prompts, training: bool
    ) -> Decoding:
        encoder = self._sam.prompt_encoder
        # The official encoder pads where there is no box; a box or a mask alone goes without points at all.
        has_points = prompts.labels.shape[1] > 0 or (prompts.boxes is None and prompts.masks is None)
        points = (prompts.points, prompts.labels) if has_points else None
        sparse, dense = encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        position, decoder = encoder.get_dense_pe(), self._sam.mask_decoder
        return Decoding(decoder, features, position, sparse, dense, rows, _decode_call, side, training)


def high_frequency(pixels: Tensor, share: float = 0.25) -> Tensor:
    """(B, 3, S, S) pixels without their low frequencies, as SAM-Adapter takes them (arXiv 2304.09148, section 3.2).

    The centre of the shifted spectrum, a square of ``share`` of its area, is set to zero; the result is the absolute
    value of the real part.
    """
    height, width = pixels.shape[-2:]
    half = int((height * width * share) ** 0.5 // 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(pixels.float()), dim=(-2, -1))
    spectrum[..., height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    back: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real.abs()
    return back


def _decode_call(call: Decoding, decoder: nn.Module) -> Masks:
    return decode_batch(decoder, call.features, call.position, call.sparse, call.dense)


def decode_batch(decoder: Any, features: Tensor, position: Tensor, sparse: Tensor, dense: Tensor) -> Masks:
    """The official ``MaskDecoder.predict_masks`` for one set of prompts per image instead of many for one image."""
    out, upscaled = run_tokens(decoder, features, position, sparse, dense)
    return masks_of_tokens(decoder, out, upscaled)


def run_tokens(
    decoder: Any, features: Tensor, position: Tensor, sparse: Tensor, dense: Tensor, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The decoder's transformer and upscaling: output tokens (b, T, D) and features (b, D / 8, 4 G, 4 G).

    The tokens are in the order IoU, masks, ``more`` (b or 1, M, D), ``sparse``.
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
    parts = [own] if more is None else [own, more]
    tokens = torch.cat([*(part.expand(len(features), -1, -1) for part in parts), sparse], dim=1)
    out, image = decoder.transformer(features + dense, position.expand_as(features), tokens)
    image = image.transpose(1, 2).reshape(features.shape)
    return out, decoder.output_upscaling(image)


def masks_of_tokens(decoder: Any, out: Tensor, upscaled: Tensor) -> Masks:
    """The answer of mask token 0 to what ``run_tokens`` returns."""
    kernel = decoder.output_hypernetworks_mlps[0](out[:, 1])
    logits = (kernel[:, None] @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return Masks(logits=logits, iou=predicted_iou(decoder, out))


def predicted_iou(decoder: Any, out: Tensor) -> Tensor:
    """(b, 1) the decoder's estimate of the IoU of mask token 0."""
    iou: Tensor = decoder.iou_prediction_head(out[:, 0])[:, :1]
    return iou
