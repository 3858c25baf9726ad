"""Pictures of what a bank does: image, truth, plain SAM and the bank side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samcl_core.domains import Sample, load_image, load_mask
from samcl_core.drawing import to_pixels, write_png
from samcl_core.evaluation import SheetRow, comparison_sheet
from samcl_core.inference import Prediction, Prompt, Segmenter

__all__ = ["draw_gallery"]

_ROWS = 4


def draw_gallery(path: Path, domain: str, samples: Sequence[Sample], plain: Segmenter, bank: Segmenter) -> None:
    """Write a comparison sheet of up to four of ``samples``, evenly spread."""
    places = np.linspace(0, len(samples) - 1, min(_ROWS, len(samples))).round().astype(int)
    chosen = [samples[place] for place in places]
    images = [load_image(sample.image) for sample in chosen]
    prompts = [Prompt(sample.points, sample.labels, sample.box) for sample in chosen]
    before, after = plain.predict(images, prompts), bank.predict(images, prompts)
    rows = [_row(domain, *row) for row in zip(chosen, images, before, after, strict=True)]
    write_png(path, comparison_sheet(rows, title=domain))


def _row(domain: str, sample: Sample, image: np.ndarray, before: Prediction, after: Prediction) -> SheetRow:
    truth = load_mask(sample.mask)
    return SheetRow(
        domain=domain,
        image=image,
        truth=truth,
        zero_shot=before.mask,
        bank=after.mask,
        chosen=after.module,
        iou_zero_shot=_iou(before.mask, truth),
        iou_bank=_iou(after.mask, truth),
        points=to_pixels(sample.points, image.shape[1], image.shape[0]),
        labels=sample.labels,
        confidence=after.confidence,
    )


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0
