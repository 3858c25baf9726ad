"""Queries of samples whose prefixes are stored: they depend on the selector, so they are not stored with these."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from samcl_core.domains import Sample
from samcl_core.selectors import TokenSelector
from samcl_core.training import PrefixCache

__all__ = ["QueryCache"]

_CUDA_BATCH = 4


class QueryCache:
    """Queries of one bound selector by the digest of the image, in memory.

    On the CPU each image goes through the backbone alone, so that its query depends on nothing but the image.
    """

    def __init__(self, looker: TokenSelector, max_images: int = 20_000) -> None:
        """``looker`` is bound to a backbone; beyond ``max_images`` the oldest queries make room."""
        self._looker, self._max_images = looker, max_images
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, samples: Sequence[Sample], cache: PrefixCache) -> Tensor:
        """(n, C) float32 queries in order, on the selector's device; ``cache`` reads the images that are missing.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        found = {s.image_sha256: self._known[s.image_sha256] for s in samples if s.image_sha256 in self._known}
        missing = list({s.image_sha256: s for s in samples if s.image_sha256 not in found}.values())
        size = 1 if self._looker.tokens.device.type == "cpu" else _CUDA_BATCH
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            queries = self._looker.query(cache.pixels(batch))
            found |= {sample.image_sha256: query for sample, query in zip(batch, queries, strict=True)}
        self._known.update(found)
        while len(self._known) > self._max_images:
            self._known.popitem(last=False)
        return torch.stack([found[sample.image_sha256] for sample in samples])
