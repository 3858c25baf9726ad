"""The model card of a pretrained ``sam_nano``: every number in it was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from samcl_core.backbones.nano import NANO
from samcl_core.training.zero_shot import PROMPTS, Scores

__all__ = ["SCORES_BEGIN", "SCORES_END", "model_card", "score_rows", "scores_table"]

SCORES_BEGIN, SCORES_END = "<!-- scores -->", "<!-- end of scores -->"
"""Comments around the table of scores, by which other pages find its place."""

_CARD = """\
# sam_nano

The official `segment_anything` classes with small numbers ({num_parameters:,} parameters, {depth} blocks of width
{width}, input {size} x {size}), trained from random weights for promptable segmentation on drawn scenes. Made for
machines without a GPU, for tests and for demonstrations. Apache-2.0, like the project.

| | |
| --- | --- |
| file | `sam_nano.safetensors`, half precision, {num_bytes:,} bytes |
| sha256 | `{sha256}` |
| data | dead-leaves scenes, drawn while training by `samcl_core/training/leaves.py`; no photograph, no foreign data |
| steps | {steps:,} of {batch_size} scenes with {objects} prompted objects each |
| command | `{command}` |
| device | {device} |
| time | {minutes:.0f} min ({seconds:,} s) |
| versions | samcl {samcl}, torch {torch} |

## Scores

{scores}

The scenes are those of `samcl_core/domains/scenes`, from which training never draws; `dead leaves` are scenes of the
training's kind from other seeds. One object a picture, {size} px, points drawn from its mask, no background points.
Scored with the file as it is shipped.

## Training

Some lines of the curve, each the mean over the steps since the curve's line before; the IoU is that of the
training's own prompts.

| step | loss | IoU | rate |
| ---: | ---: | ---: | ---: |
{curve}

## Limits

- Weakest here, with 3 points: {weakest}.
- It has seen drawn scenes only. How it does on photographs was not measured.
- Images are squashed to {size} x {size}: what is thinner than a few of those pixels is lost.
- One mask a prompt (mask token 0, `multimask_output=False`). The tokens for three masks were not trained, nor were
  prompts by masks.
- Prompts were one to five points, three points with two background points, or one box; other mixtures were not trained.
- Its own estimate of a mask's IoU was trained, and its calibration was not measured.
"""


def score_rows(about: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the scores: mean over the seeds ± standard deviation of the seeds."""
    rows = [
        [name, *(_mean_and_spread(kinds[kind]) for kind in PROMPTS)] for name, kinds in about["scores"]["iou"].items()
    ]
    return ["pictures", *PROMPTS], rows


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def scores_table(about: Mapping[str, Any]) -> str:
    """The scores as Markdown between two comments, by which other pages find their place."""
    header, rows = score_rows(about)
    scores = about["scores"]
    cells = [header, ["---", *["---:"] * len(PROMPTS)], *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    seeds = ", ".join(map(str, scores["seeds"]))
    said = (
        f"Mean IoU, zero-shot, {scores['num_images']} pictures for each of the seeds {seeds}; "
        "± is the standard deviation of the seeds."
    )
    return f"{SCORES_BEGIN}\n{said}\n\n{table}\n{SCORES_END}"


def model_card(about: Mapping[str, Any], *, sha256: str, num_bytes: int) -> str:
    """The model card of a ``sam_nano``, in Markdown.

    Args:
        about: entries of the JSON file beside the weights, from ``provenance``.
        sha256: digest of the file of weights.
        num_bytes: its size.
    """
    training = about["training"]
    values = {
        **{name: getattr(NANO, name) for name in ("depth", "width")},
        **{name: training["options"][name] for name in ("steps", "batch_size", "objects")},
        **{name: training[name] for name in ("num_parameters", "command", "device", "seconds", "samcl", "torch")},
    }
    points = (f"| {p['step']} | {p['loss']:.3f} | {p['iou']:.3f} | {p['lr']:.2g} |" for p in training["curve"])
    return _CARD.format(
        **values,
        size=NANO.image_size,
        minutes=training["seconds"] / 60,
        sha256=sha256,
        num_bytes=num_bytes,
        scores=scores_table(about),
        curve="\n".join(points),
        weakest=_weakest(about["scores"]["iou"]),
    )


def _weakest(scores: Scores) -> str:
    means = {name: statistics.fmean(kinds["3 points"]) for name, kinds in scores.items()}
    return ", ".join(f"{name} ({means[name]:.2f})" for name in sorted(means, key=lambda name: means[name])[:3])
