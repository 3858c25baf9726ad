"""Pictures for people: masks over images, comparison sheets, the R matrix as a heat-map. Same input, same PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from samcl_core.drawing import Mask, Points, Rgb, overlay
from samcl_core.evaluation.rmatrix import LOWER_IS_BETTER, learnt_in, pivot
from samcl_core.evaluation.tables import MISSING, step_name
from samcl_core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SheetRow", "comparison_sheet", "r_matrix_heatmap"]

_SHEET_DPI, _HEATMAP_DPI = 100, 150
_CELL = (0.86, 0.44)
_LONG_NAME = 11
_INK = "#1f2933"
_PALE_INK = "#52606d"
_MUTED = "#7b8794"
_TITLES = {
    "iou": "IoU",
    "f1": "F1 (Dice)",
    "mae": "MAE",
    "boundary_iou": "Boundary IoU",
    "selector_accuracy": "Selector accuracy",
}


# Comparison sheet -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SheetRow:
    """One image of a comparison sheet.

    Attributes:
        domain: where the image comes from.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) bool.
        zero_shot: (H, W) bool, the mask of the untouched backbone.
        bank: (H, W) bool, the mask with the bank.
        chosen: the module the selector chose, ``plain`` for none.
        iou_zero_shot: IoU of ``zero_shot``, 0..1.
        iou_bank: IoU of ``bank``, 0..1.
        points: (N, 2) x, y in pixels of the image.
        labels: N labels, 1 foreground, 0 background; all foreground when empty.
        confidence: the selector's probability of its choice, 0..1, or ``None``.
    """

    domain: str
    image: Rgb
    truth: Mask
    zero_shot: Mask
    bank: Mask
    chosen: str
    iou_zero_shot: float
    iou_bank: float
    points: Points = ()
    labels: Sequence[int] | NDArray[Any] = ()
    confidence: float | None = None


def comparison_sheet(rows: Sequence[SheetRow], *, title: str = "", tile_px: int = 320) -> Rgb:
    """A sheet with one row an image: image and prompt, truth, zero-shot mask, mask with the bank; captions below each.

    Args:
        rows: at least one.
        title: printed above.
        tile_px: width of each picture; portrait images are fitted into a square of this side.

    Returns:
        (H, W, 3) uint8 RGB, for ``write_png``.

    Raises:
        ValueError: there is no row, or masks and image of a row differ in size.
    """
    if not rows:
        raise ValueError("a comparison sheet needs at least one row, found none")
    tiles = [_tiles(row, tile_px) for row in rows]
    margin, caption, head = 14, 40, 84 if title else 44
    heights = [row_tiles[0][0].shape[0] + caption for row_tiles in tiles]
    sheet = _Sheet(4 * (tile_px + margin) + margin, head + sum(heights))
    if title:
        sheet.write(margin, 26, title, size=13, weight="bold", align="left")
    lefts = [margin + column * (tile_px + margin) for column in range(4)]
    for left, name in zip(lefts, ("image and prompt", "truth", "zero-shot", "with the bank"), strict=True):
        sheet.write(left + tile_px / 2, head - 16, name, size=10, colour=_MUTED)
    top = float(head)
    for row, row_tiles, height in zip(rows, tiles, heights, strict=True):
        for column, (left, (picture, text)) in enumerate(zip(lefts, row_tiles, strict=True)):
            sheet.paste(left + (tile_px - picture.shape[1]) / 2, top, picture)
            weight = "bold" if column == 3 and row.iou_bank > row.iou_zero_shot else "normal"
            sheet.write(left + tile_px / 2, top + height - caption + 14, text, size=9, weight=weight)
        top += height
    return sheet.rendered()


class _Sheet:
    """A white page in pixels, origin at the top left."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._figure = _figure(width / _SHEET_DPI, height / _SHEET_DPI, _SHEET_DPI)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        colour: str = _INK,
        weight: str = "normal",
        align: str = "center",
    ) -> None:
        width, height = self._size
        style: dict[str, Any] = {"fontsize": size, "color": colour, "fontweight": weight, "ha": align, "va": "center"}
        self._figure.text(x / width, 1 - y / height, text, **style)

    def paste(self, left: float, top: float, picture: Rgb) -> None:
        self._figure.figimage(picture, round(left), round(self._size[1] - top - picture.shape[0]), origin="upper")

    def rendered(self) -> Rgb:
        canvas: Any = self._figure.canvas
        canvas.draw()
        return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def _tiles(row: SheetRow, tile_px: int) -> list[tuple[Rgb, str]]:
    import cv2

    height, width = row.image.shape[:2]
    scale = tile_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = np.asarray(cv2.resize(row.image, size, interpolation=smooth), dtype=np.uint8)

    def fit(mask: Mask) -> Mask:
        if mask.shape != (height, width):
            raise ValueError(f"a mask of {row.domain} is {mask.shape}, expected the image's {(height, width)}")
        return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5)

    truth, points = fit(row.truth), np.asarray(row.points, dtype=np.float64).reshape(-1, 2) * scale
    sure = "" if row.confidence is None else f" ({row.confidence:.0%})"
    return [
        (overlay(image, None, None, points, row.labels), row.domain),
        (overlay(image, None, truth), f"{row.truth.mean():.1%} of the image"),
        (overlay(image, fit(row.zero_shot), truth, points, row.labels), f"IoU {row.iou_zero_shot:.3f}"),
        (overlay(image, fit(row.bank), truth, points, row.labels), f"IoU {row.iou_bank:.3f} · {row.chosen}{sure}"),
    ]


# R matrix -------------------------------------------------------------------------------------------------------------


def r_matrix_heatmap(
    frame: pd.DataFrame,
    metric: str,
    path: Path,
    order: Sequence[str] = (),
    *,
    fits: Sequence[int] | None = None,
) -> None:
    """Write one metric of the R matrix as an annotated heat-map PNG.

    Rows are steps (row 0 zero-shot), columns are domains: the learnt ones in order, then natural and unseen ones behind
    a gap. The cell of the step that learnt a domain is framed; cells before it are pale, they are transfer, not memory.

    Args:
        frame: the long form.
        metric: for instance ``iou``.
        path: the PNG to write, atomically.
        order: learnt domains in the order of arrival.
        fits: the steps that have a row; every one when ``None``.

    Raises:
        DataError: there is no cell of this metric.
    """
    matrix = pivot(frame, metric, order)
    roles = [_role(frame, str(name)) for name in matrix.columns]
    names, steps = [str(name) for name in matrix.columns], [int(step) for step in matrix.index]
    labels, places = [step_name(step, order, fits) for step in steps], _places(roles)
    is_slanted = max(map(len, names)) > _LONG_NAME
    left, top = 0.3 + 0.085 * max(map(len, labels)), 0.75 + (0.05 * max(map(len, names)) if is_slanted else 0.0)
    grid_width, grid_height = (places[-1] + 1) * _CELL[0], len(labels) * _CELL[1]
    width, height = max(left + grid_width + (0.6 if is_slanted else 0.2), 3.4), top + grid_height + 0.32
    figure = _figure(width, height, _HEATMAP_DPI)
    box = (left / width, 0.32 / height, grid_width / width, grid_height / height)
    axes = figure.add_axes(box, xlim=(0, places[-1] + 1), ylim=(len(labels), 0))
    learnt_in_row = {name: step for step in steps for name in learnt_in(step, order, fits)}
    for name, place, values in zip(names, places, matrix.to_numpy().T.tolist(), strict=True):
        learnt_at = learnt_in_row.get(name)
        for row, (step, value) in enumerate(zip(steps, values, strict=True)):
            _draw_cell(axes, place, row, value, metric, step, learnt_at)
    _label_axes(axes, names, places, labels, roles, is_slanted=is_slanted)
    title = f"{_TITLES.get(metric, metric)} after each step"
    figure.text(0.15 / width, 1 - 0.24 / height, title, fontsize=11, fontweight="bold", color=_INK, va="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _role(frame: pd.DataFrame, domain: str) -> str:
    return str(frame.loc[frame["domain"] == domain, "role"].iloc[0])


def _places(roles: Sequence[str]) -> list[float]:
    """Left edge of each column; a gap where the role changes."""
    places, place = [], 0.0
    for number, role in enumerate(roles):
        if number and role != roles[number - 1]:
            place += 0.3
        places.append(place)
        place += 1
    return places


def _draw_cell(axes: Axes, x: float, row: int, value: float, metric: str, step: int, learnt_at: int | None) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    is_missing = math.isnan(value)
    is_early = learnt_at is not None and step < learnt_at
    shade = 0.0 if is_missing else min(1.0, max(0.0, 1 - value if metric in LOWER_IS_BETTER else value))
    colour = np.array((0.94, 0.94, 0.95) if is_missing else colormaps["YlGnBu"](0.06 + 0.84 * shade)[:3])
    if is_early:
        colour = 1 - 0.45 * (1 - colour)
    axes.add_patch(Rectangle((x + 0.02, row + 0.03), 0.96, 0.94, facecolor=tuple(colour), linewidth=0))
    if learnt_at == step:
        axes.add_patch(Rectangle((x + 0.04, row + 0.06), 0.92, 0.88, fill=False, edgecolor="#e8590c", linewidth=1.6))
    style: dict[str, Any] = {
        "fontsize": 9,
        "fontweight": "bold" if learnt_at == step else "normal",
        "ha": "center",
        "va": "center",
    }
    ink = _PALE_INK if is_missing or is_early else _readable(colour)
    axes.text(x + 0.5, row + 0.52, MISSING if is_missing else f"{value:.3f}", color=ink, **style)


def _readable(colour: NDArray[np.float64]) -> str:
    """White or ink, whichever has more contrast on ``colour`` (relative luminance of WCAG 2)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ (0.2126, 0.7152, 0.0722)) < 0.26 else _INK


def _label_axes(
    axes: Axes,
    names: Sequence[str],
    places: Sequence[float],
    steps: Sequence[str],
    roles: Sequence[str],
    *,
    is_slanted: bool,
) -> None:
    slant: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if is_slanted else {}
    axes.set_xticks([place + 0.5 for place in places], names, **slant)
    axes.set_yticks([row + 0.5 for row in range(len(steps))], steps)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for role in dict.fromkeys(roles):
        own = [place for place, other in zip(places, roles, strict=True) if other == role]
        text = {"learn": "learnt, in order", "natural": "natural", "unseen": "unseen"}[role]
        axes.text((own[0] + own[-1] + 1) / 2, len(steps) + 0.12, text, ha="center", va="top", fontsize=8, color=_MUTED)


def _figure(width: float, height: float, dpi: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
