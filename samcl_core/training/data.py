"""Samples to tensors: prompts, and ground-truth masks at the size of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from samcl_core.backbones.base import Prompts
from samcl_core.domains.images import load_mask
from samcl_core.domains.layout import Sample
from samcl_core.errors import PromptError

__all__ = ["MaskCache", "masks_of", "prompts_of"]

PADDING_LABEL = -1


def prompts_of(samples: Sequence[Sample]) -> Prompts:
    """The prompts of a batch, on the CPU.

    Samples with fewer points than the batch's largest number get padding points (0, 0) with label -1.

    Args:
        samples: at least one; all with a box or all without.

    Returns:
        ``points`` (B, N, 2) float32 in the 1024 frame, ``labels`` (B, N) int64, ``boxes`` (B, 4) float32 or ``None``.

    Raises:
        PromptError: a sample has neither points nor a box, or only some samples have a box.
    """
    for sample in samples:
        if not sample.points and sample.box is None:
            raise PromptError(f"{sample.id} has no prompt, expected points or a box", hint="samcl step points DOMAIN")
        if (sample.box is None) != (samples[0].box is None):
            raise PromptError(
                f"{sample.id} has {'no' if sample.box is None else 'a'} box, unlike {samples[0].id} in the same batch; "
                "expected all or none",
                hint="samcl step points DOMAIN",
            )
    count = max(len(sample.points) for sample in samples)
    points = torch.zeros(len(samples), count, 2)
    labels = torch.full((len(samples), count), PADDING_LABEL, dtype=torch.int64)
    for row, sample in enumerate(samples):
        if sample.points:
            points[row, : len(sample.points)] = torch.tensor(sample.points, dtype=torch.float32)
            labels[row, : len(sample.points)] = torch.tensor(sample.labels, dtype=torch.int64)
    boxes = [sample.box for sample in samples if sample.box is not None]
    return Prompts(points, labels, torch.tensor(boxes, dtype=torch.float32) if boxes else None)


def masks_of(samples: Sequence[Sample], size_px: int, threshold: int = 128) -> Tensor:
    """Ground truth of a batch: (B, size_px, size_px) float32, 0 or 1, nearest-resized like Pillow's ``NEAREST``.

    Raises:
        ImageError: a mask cannot be read.
    """
    return MaskCache(size_px, threshold, max_gb=0).get(samples).float()


class MaskCache:
    """Ground truth at one size, decoded once and kept in memory as bits (128 KiB for a 1024 px mask)."""

    def __init__(self, size_px: int, threshold: int = 128, *, max_gb: float = 1.0) -> None:
        self.size_px = size_px
        self.threshold = threshold
        self._room = int(max_gb * 2**30) // max(1, (size_px * size_px + 7) // 8)
        self._bits: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._bits)

    def get(self, samples: Sequence[Sample]) -> Tensor:
        """(B, size_px, size_px) uint8, 0 or 1, on the CPU.

        Raises:
            ImageError: a mask cannot be read.
        """
        bits = np.stack([self._recall(sample) for sample in samples])
        pixels = np.unpackbits(bits, axis=1, count=self.size_px * self.size_px)
        return torch.from_numpy(pixels.reshape(-1, self.size_px, self.size_px))

    def _recall(self, sample: Sample) -> np.ndarray:
        bits = self._bits.get(sample.mask_sha256)
        if bits is None:
            bits = np.packbits(self._square(sample))
            if len(self._bits) < self._room:
                self._bits[sample.mask_sha256] = bits
        return bits

    def _square(self, sample: Sample) -> np.ndarray:
        mask = Image.fromarray(load_mask(sample.mask, self.threshold).astype(np.uint8))
        return np.asarray(mask.resize((self.size_px, self.size_px), Image.Resampling.NEAREST))
