"""Score a segmenter on the samples of a domain: one row an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Masks, Prefix, Prompts
from samcl_core.config import EvaluateParams
from samcl_core.domains import Sample, load_mask
from samcl_core.evaluation.metrics import binarize, mask_metrics
from samcl_core.inference.segmenter import Routing, Segmenter
from samcl_core.progress import Progress, silent
from samcl_core.training import PrefixCache, box_prompts, masks_of, prompts_of, resize_logits

__all__ = ["Answering", "score_samples"]


class Answering(Protocol):
    """Whatever answers a batch with masks: a ``Segmenter``, or a strategy that has no bank."""

    backbone: Backbone

    def segment(self, prefix: Prefix, prompts: Prompts, module: str) -> tuple[Masks, Routing]:
        """Masks of a batch, and which module each sample got."""
        ...


def score_samples(
    segmenter: Answering,
    cache: PrefixCache,
    samples: Sequence[Sample],
    params: EvaluateParams,
    *,
    module: str = "auto",
    progress: Progress = silent,
) -> pd.DataFrame:
    """Score masks against the ground truth.

    Args:
        segmenter: backbone and bank, or anything else that answers.
        cache: where the prefixes of the samples come from; it has the same backbone.
        samples: test samples of one domain.
        params: prompts, resolution, upsampling, batch size and boundary band.
        module: ``auto`` for the selector's choice, ``plain`` or a domain to force it.
        progress: called after each batch.

    Returns:
        One row a sample, in order: ``id``, ``module`` (chosen), ``confidence``, ``novelty`` and the metrics, all 0..1
        (``novelty`` >= 0).
    """
    rows: dict[int, dict[str, object]] = {}
    prompts = box_prompts if params.prompts == "box" else prompts_of
    answer = _answers(segmenter, cache, module)
    for batch in _batches(samples, params.batch_size):
        chosen = [samples[row] for row in batch]
        prefix = cache.get(chosen).to(segmenter.backbone.device)
        masks, routing = answer(chosen, prefix, prompts(chosen).to(segmenter.backbone.device))
        values = _metrics(masks.logits, chosen, segmenter.backbone.image_size, params)
        for position, row in enumerate(batch):
            rows[row] = {
                "id": samples[row].id,
                "module": routing.names[position],
                "confidence": float(routing.confidence[position]),
                "novelty": float(routing.novelty[position]),
                **{name: float(column[position]) for name, column in values.items()},
            }
        progress("score", len(rows), len(samples))
    return pd.DataFrame([rows[row] for row in range(len(samples))])


def _answers(
    segmenter: Answering, cache: PrefixCache, module: str
) -> Callable[[Sequence[Sample], Prefix, Prompts], tuple[Masks, Routing]]:
    if isinstance(segmenter, Segmenter) and segmenter.is_looking(module):
        return lambda samples, prefix, prompts: segmenter.segment(
            prefix, prompts, module, segmenter.queries(samples, cache)
        )
    return lambda samples, prefix, prompts: segmenter.segment(prefix, prompts, module)


def _batches(samples: Sequence[Sample], size: int) -> list[list[int]]:
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        groups[len(sample.points), sample.box is None].append(row)
    return [rows[i : i + size] for rows in groups.values() for i in range(0, len(rows), size)]


def _metrics(logits: Tensor, samples: Sequence[Sample], size_px: int, params: EvaluateParams) -> dict[str, list[float]]:
    mode = params.upsampling or "bilinear"
    if params.resolution == "model":
        truth = masks_of(samples, size_px).to(logits.device) > 0.5
        found = binarize(resize_logits(logits, size_px, mode)[:, 0])
        return {name: values.tolist() for name, values in mask_metrics(found, truth, params.boundary_frac).items()}
    columns: dict[str, list[float]] = defaultdict(list)
    for position, sample in enumerate(samples):
        truth = torch.from_numpy(load_mask(sample.mask))[None].to(logits.device)
        height, width = truth.shape[-2:]
        found = binarize(resize_logits(logits[position : position + 1], (height, width), mode)[:, 0])
        for name, values in mask_metrics(found, truth, params.boundary_frac).items():
            columns[name].append(float(values[0]))
    return dict(columns)
