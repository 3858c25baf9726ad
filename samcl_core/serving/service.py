"""A bank and its backbone that answer requests: checked first, then one pass for all rows, whatever their domains."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from samcl_core.backbones import load_backbone
from samcl_core.backbones.base import Backbone
from samcl_core.backbones.checkpoints import checkpoint_dir
from samcl_core.bank import Bank
from samcl_core.config import BackboneParams
from samcl_core.errors import CheckpointMismatch, CheckpointMissing, UsageError
from samcl_core.inference import Prediction, Segmenter
from samcl_core.masks import mask_to_rle
from samcl_core.serving.masks import mask_to_png
from samcl_core.serving.requests import read_request

__all__ = ["CHECKPOINT_VARIABLE", "MASK_FORMATS", "MAX_BATCH_SIZE", "BackboneReference", "Service"]

CHECKPOINT_VARIABLE = "SAMCL_BACKBONE_CHECKPOINT"
MASK_FORMATS = ("png", "rle")
MAX_BATCH_SIZE = 64
MAX_NOVELTY = 1e6
"""Larger values, infinity among them, are answered as this one: JSON has no infinity."""


@dataclass(frozen=True)
class BackboneReference:
    """The frozen model that a bank was made for.

    Attributes:
        name: a registered backbone.
        sha256: digest that its weights must have.
        file: name of the weights file where they are the user's own; ``None`` for official or built-in weights.
    """

    name: str
    sha256: str
    file: str | None = None

    def load(self, device: str, inside: Path | None = None) -> Backbone:
        """The backbone with exactly these weights.

        Looked for in this order: ``inside`` (a file that travels with the bank), the file that
        ``SAMCL_BACKBONE_CHECKPOINT`` names, ``file`` in the folder of checkpoints, the weights known by ``name``.

        Raises:
            CheckpointMissing: they are not on this machine; the hint says how they come here.
            CheckpointMismatch: what is there has another sha256.
        """
        chosen = os.environ.get(CHECKPOINT_VARIABLE)
        path = inside or (Path(chosen).expanduser() if chosen else None)
        if path is None and self.file is not None:
            path = checkpoint_dir() / self.file
        if path is not None and not path.is_file():
            raise CheckpointMissing(
                f"the weights of {self.name} (sha256 {self.sha256}) are not at {path}",
                hint=f"copy them there, or name them: {CHECKPOINT_VARIABLE}=FILE",
            )
        checkpoint = None if path is None else str(path)
        network = load_backbone(
            BackboneParams(name=self.name, checkpoint=checkpoint, sha256=self.sha256 if checkpoint else None), device
        )
        if network.sha256 != self.sha256:
            raise CheckpointMismatch(
                f"the weights of {self.name} have sha256 {network.sha256}, expected {self.sha256}",
                hint=f"install the samcl that made the bank, or name its weights: {CHECKPOINT_VARIABLE}=FILE",
            )
        return network


class Service:
    """Answers rows. Threads may share one: images are read side by side, the network runs one request at a time."""

    def __init__(self, segmenter: Segmenter, upsampling: Literal["bilinear", "nearest"] = "bilinear") -> None:
        self.segmenter = segmenter
        self.upsampling = upsampling
        self._network = threading.Lock()

    @staticmethod
    def load(
        bank: Path,
        backbone: BackboneReference,
        *,
        inside: Path | None = None,
        upsampling: Literal["bilinear", "nearest"] = "bilinear",
        device: str = "auto",
    ) -> Service:
        """The service of a bank folder.

        Args:
            bank: the folder; every file is compared with its digest.
            backbone: what it was made for.
            inside: the weights, where they travel with the bank.
            upsampling: how logits become masks of the images' sizes.
            device: ``auto`` is the GPU where there is one.

        Raises:
            IntegrityError: a file of the bank is missing, surplus or changed.
            BackboneMismatch: the bank was made for another backbone.
            CheckpointMissing, CheckpointMismatch: as ``BackboneReference.load``.
        """
        loaded = Bank.load(bank, backbone_sha256=backbone.sha256)
        return Service(Segmenter(backbone.load(device, inside), loaded), upsampling)

    def answer(
        self, rows: Sequence[Mapping[str, Any]], *, mask_format: str = "png", batch_size: int = 8
    ) -> list[dict[str, Any]]:
        """One answer a row, in order. A row that cannot be used refuses them all: nothing is answered in part.

        Args:
            rows: as ``read_request`` reads them.
            mask_format: ``png`` (base64 text) or ``rle`` (COCO's ``{"size", "counts"}``).
            batch_size: images that are in the network at once, 1 to 64.

        Returns:
            JSON values: ``mask``, ``score`` (expected IoU, 0..1), ``module`` (the one used), ``confidence`` (0..1),
            ``novelty`` (above 1 the image fits no known domain), ``height`` and ``width`` of the mask in pixels, and
            ``bank`` (the digest of the bank that answered).

        Raises:
            UsageError, PromptError, ImageError: the first row that is wrong, by its number; or a wrong option.
        """
        if mask_format not in MASK_FORMATS:
            raise UsageError(f"mask_format is {mask_format!r}, expected one of {list(MASK_FORMATS)}")
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise UsageError(f"batch_size is {batch_size}, expected 1 to {MAX_BATCH_SIZE}")
        requests = [read_request(row, position, self.segmenter.names) for position, row in enumerate(rows)]
        with self._network:
            found = self.segmenter.predict(
                [request.image for request in requests],
                [request.prompt for request in requests],
                [request.module for request in requests],
                batch_size,
                self.upsampling,
            )
        return [self._values(prediction, mask_format) for prediction in found]

    def _values(self, found: Prediction, mask_format: str) -> dict[str, Any]:
        height, width = found.mask.shape
        return {
            "mask": mask_to_png(found.mask) if mask_format == "png" else mask_to_rle(found.mask),
            "score": found.score,
            "module": found.module,
            "confidence": found.confidence,
            "novelty": min(found.novelty, MAX_NOVELTY),
            "height": int(height),
            "width": int(width),
            "bank": "" if self.segmenter.bank is None else self.segmenter.bank.digest,
        }
