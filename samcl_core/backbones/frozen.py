"""What all backbones share: freezing, digests of weights, named draws, the square input, sets of prompts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from samcl_core.backbones.base import FRAME_PX, Masks, Prompts
from samcl_core.errors import ImageError, PromptError

__all__ = ["PADDING", "decode_by_count", "draw_weights", "freeze", "scaled", "squash", "weights_digest"]

PADDING = -1
"""Label of a point that only fills the rectangle of a batch."""

_TABLES = ("pos_embed", "pos_embed_window", "rel_pos_h", "rel_pos_w")


def freeze(module: nn.Module) -> None:
    """Eval mode, and no parameter takes gradients."""
    module.eval()
    module.requires_grad_(False)


def weights_digest(module: nn.Module) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def draw_weights(module: nn.Module, name: str) -> None:
    """Fill ``module`` in place with untrained weights that depend on ``name`` and each tensor's key alone.

    Each tensor comes from numpy's PCG64 seeded by sha256 of ``<name>/<key>``: position tables have std 0.02, norms are
    1 and 0, biases 0, tokens and the random Fourier features have std 1 and kernels std 1 / sqrt(fan in). (The official
    class leaves the position embedding at zero; with it there, tokens cannot be told apart.)
    """
    transposed = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, nn.ConvTranspose2d)}
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            seed = int.from_bytes(hashlib.sha256(f"{name}/{key}".encode()).digest()[:8], "little")
            drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(value.shape)).astype(np.float32)
            value.copy_(torch.from_numpy(_scaled_draw(key, drawn, key in transposed)))


def _scaled_draw(key: str, drawn: np.ndarray, is_transposed: bool) -> np.ndarray:
    last = key.rsplit(".", 1)[-1]
    if last in _TABLES:
        return drawn * np.float32(0.02)
    if drawn.ndim <= 1:
        return np.full_like(drawn, 1.0 if last == "weight" else 0.0)
    if last == "positional_encoding_gaussian_matrix" or drawn.shape[0] == 1 or "token" in key or "_embed." in key:
        return drawn if "patch_embed" not in key else drawn / np.float32(math.sqrt(math.prod(drawn.shape[1:])))
    fan_in = drawn.shape[0] if is_transposed else math.prod(drawn.shape[1:])
    return drawn / np.float32(math.sqrt(fan_in))


def squash(image: np.ndarray, size_px: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (size, size, 3) uint8: PIL bilinear with antialiasing, aspect ratio not kept.

    The same bytes as torchvision's ``Resize`` on a PIL image, which the published code uses.

    Raises:
        ImageError: ``image`` is not (H, W, 3) uint8, or is empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"image is {image.dtype} {image.shape}, expected uint8 (height, width, 3) RGB")
    picture = Image.fromarray(np.ascontiguousarray(image))
    if picture.size != (size_px, size_px):
        picture = picture.resize((size_px, size_px), Image.Resampling.BILINEAR)
    return np.array(picture)


def scaled(prompts: Prompts, size_px: int, mask_px: int) -> Prompts:
    """Prompts of the 1024 frame in pixels of a ``size_px`` square; mask prompts stay as they are.

    Raises:
        PromptError: shapes of points, labels and boxes do not agree.
    """
    if prompts.points.shape != (*prompts.labels.shape, 2):
        raise PromptError(
            f"points are {tuple(prompts.points.shape)} and labels {tuple(prompts.labels.shape)}, "
            "expected (B, N, 2) and (B, N)"
        )
    if prompts.boxes is not None and prompts.boxes.shape != (len(prompts), 4):
        raise PromptError(f"boxes are {tuple(prompts.boxes.shape)}, expected ({len(prompts)}, 4)")
    expected = (len(prompts), 1, mask_px, mask_px)
    if prompts.masks is not None and prompts.masks.shape != expected:
        raise PromptError(f"mask prompts are {tuple(prompts.masks.shape)}, expected {expected}")
    factor = size_px / FRAME_PX
    boxes = None if prompts.boxes is None else prompts.boxes.float() * factor
    return Prompts(prompts.points.float() * factor, prompts.labels, boxes, prompts.masks)


def decode_by_count(prompts: Prompts, decode: Callable[[Any, Prompts], Masks]) -> Masks:
    """``decode(rows, prompts[rows])`` in one pass per number of real points, results in the order of the batch.

    A padding point is a token that other tokens attend to, so it changes the mask: an image would get another answer
    beside an image with more points. Rows with equally many points share a pass; usually that is the whole batch.
    """
    used = prompts.labels != PADDING
    counts = used.sum(dim=1)
    sizes: list[int] = sorted(set(counts.tolist()))
    if sizes == [prompts.labels.shape[1]]:
        return decode(slice(None), prompts)
    order = (~used).to(torch.uint8).argsort(dim=1, stable=True)
    points = prompts.points.gather(1, order[..., None].expand_as(prompts.points))
    labels = prompts.labels.gather(1, order)
    parts, taken = [], []
    for size in sizes:
        rows = (counts == size).nonzero()[:, 0]
        boxes = None if prompts.boxes is None else prompts.boxes[rows]
        masks = None if prompts.masks is None else prompts.masks[rows]
        parts.append(decode(rows, Prompts(points[rows, :size], labels[rows, :size], boxes, masks)))
        taken.append(rows)
    back = torch.cat(taken).argsort()
    return Masks(torch.cat([part.logits for part in parts])[back], torch.cat([part.iou for part in parts])[back])
