"""Score a segmenter on the samples of a domain: one row an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pandas as pd
import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Masks, Prefix, Prompts
from samcl_core.config import EvaluateParams
from samcl_core.domains import Sample, load_mask
from samcl_core.evaluation.metrics import mask_metrics
from samcl_core.inference.ahead import in_advance
from samcl_core.inference.enlarging import by_size, enlarged_masks
from samcl_core.inference.segmenter import Routing, Segmenter
from samcl_core.progress import Progress, silent
from samcl_core.training import MaskCache, PrefixCache, box_prompts, prompts_of

__all__ = ["Answering", "score_samples"]

_CUDA_WORKERS = 4
Value = TypeVar("Value")
_METRICS = ("iou", "f1", "mae", "boundary_iou")


class Answering(Protocol):
    """Whatever answers a batch with masks: a ``Segmenter``, or a strategy that has no bank."""

    backbone: Backbone

    def segment(self, prefix: Prefix, prompts: Prompts, module: str) -> tuple[Masks, Routing]:
        """Masks of a batch, and which module each sample got."""
        ...


@dataclass(frozen=True)
class _Batch:
    """What the network needs, and the ground truth by size: where in the batch, and (n, H, W) bool."""

    rows: list[int]
    prefix: Prefix
    prompts: Prompts
    truth: list[tuple[list[int], Tensor]]


def score_samples(
    segmenter: Answering,
    cache: PrefixCache,
    samples: Sequence[Sample],
    params: EvaluateParams,
    *,
    module: str = "auto",
    progress: Progress = silent,
    masks: MaskCache | None = None,
) -> pd.DataFrame:
    """Score masks against the ground truth.

    Beside a GPU, prefixes and ground truth of the next batches are read by threads, and no batch waits for the scores
    of the one before.

    Args:
        segmenter: backbone and bank, or anything else that answers.
        cache: where the prefixes of the samples come from; it has the same backbone.
        samples: test samples of one domain.
        params: prompts, resolution, upsampling, batch size and boundary band.
        module: ``auto`` for the selector's choice, ``plain`` or a domain to force it.
        progress: called after each batch.
        masks: keeps the ground truth at the model's resolution, for whoever scores the same samples again.

    Returns:
        One row a sample, in order: ``id``, ``module`` (chosen), ``confidence``, ``novelty`` and the metrics, all 0..1
        (``novelty`` >= 0).
    """
    if not samples:
        return pd.DataFrame()
    device, size_px = segmenter.backbone.device, segmenter.backbone.image_size
    answer, prompts = _answers(segmenter, cache, module), box_prompts if params.prompts == "box" else prompts_of
    truth = _Truth(params, MaskCache(size_px, max_gb=0) if masks is None else masks)

    def load(rows: list[int]) -> _Batch:
        chosen = [samples[row] for row in rows]
        prefix, asked = cache.get(chosen).to(device), prompts(chosen).to(device)
        return _Batch(rows, prefix, asked, [(at, true.to(device)) for at, true in truth.of(chosen)])

    order: list[int] = []
    scored: list[int] = []
    names: list[str] = []
    routed, scores = [], []
    batches = _batches(samples, params.batch_size)
    for batch in in_advance(load, batches, 0 if device.type == "cpu" else _CUDA_WORKERS):
        found, routing = answer([samples[row] for row in batch.rows], batch.prefix, batch.prompts)
        names += routing.names
        order += batch.rows
        routed.append(torch.stack([routing.confidence.double(), routing.novelty.double()]))
        for places, true in batch.truth:
            scored += [batch.rows[place] for place in places]
            scores.append(_scores(found.logits, places, true, params))
        progress("score", len(order), len(samples))
    columns = {
        "module": _in_order(names, order),
        **_columns(("confidence", "novelty"), routed, order),
        **_columns(_METRICS, scores, scored),
    }
    return pd.DataFrame({"id": [sample.id for sample in samples], **columns})


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


class _Truth:
    """Ground truth at the resolution of the scores."""

    def __init__(self, params: EvaluateParams, masks: MaskCache) -> None:
        self._is_original = params.resolution != "model"
        self._masks = masks

    def of(self, samples: Sequence[Sample]) -> list[tuple[list[int], Tensor]]:
        """Positions in the batch and their (n, H, W) bool masks on the CPU, size by size."""
        if not self._is_original:
            return [(list(range(len(samples))), self._masks.get(samples).view(torch.bool))]
        arrays = [torch.from_numpy(load_mask(sample.mask)) for sample in samples]
        groups = by_size([(array.shape[0], array.shape[1]) for array in arrays])
        return [(places, torch.stack([arrays[place] for place in places])) for places in groups.values()]


def _scores(logits: Tensor, places: list[int], truth: Tensor, params: EvaluateParams) -> Tensor:
    """(metrics, n) float64 of some places of a batch."""
    mode, size = params.upsampling or "bilinear", (truth.shape[1], truth.shape[2])
    few = logits if places == list(range(len(logits))) else torch.cat([logits[at : at + 1] for at in places])
    values = mask_metrics(enlarged_masks(few, size, mode), truth, params.boundary_frac)
    return torch.stack([values[name] for name in _METRICS])


def _columns(names: Sequence[str], parts: list[Tensor], order: list[int]) -> dict[str, list[float]]:
    """Name to values in the order of the samples; the only copy to the CPU for a whole domain."""
    return {name: _in_order(row, order) for name, row in zip(names, torch.cat(parts, 1).tolist(), strict=True)}


def _in_order(values: Sequence[Value], order: list[int]) -> list[Value]:
    """``values[i]`` at ``order[i]``."""
    placed = dict(zip(order, values, strict=True))
    return [placed[row] for row in range(len(order))]
