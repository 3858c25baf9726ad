"""Plots of a benchmark and the contact sheet of its domains. Same input, same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.benchmarks.summary import cell_numbers, curve, mean_frame, stat_of
from samcl_core.domains.synthetic import draw
from samcl_core.drawing import overlay
from samcl_core.evaluation.pictures import r_matrix_heatmap
from samcl_core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from samcl_core.benchmarks.streams import StreamSpec
    from samcl_core.benchmarks.units import Cell

__all__ = ["comparison_plot", "domain_sheet", "forgetting_plot", "r_matrix_plots"]

_DPI = 150
_SHEET_DPI = 100
_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_COLOURS = ("#7b8794", "#2b8a3e", "#1c6dd0", "#0ca5b0", "#7048e8", "#e8590c", "#c2255c", "#b08900", "#495057")
_PLAIN = "zero_shot"
_NUM_IMAGES = 4


def _colour(strategy: str, titles: dict[str, str]) -> str:
    return _COLOURS[list(titles).index(strategy) % len(_COLOURS)]


def _by_strategy(cells: Sequence[Cell], titles: dict[str, str]) -> dict[str, list[Cell]]:
    groups = {name: [cell for cell in cells if cell.strategy == name] for name in titles}
    return {name: own for name, own in groups.items() if own}


def _new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _style(axes: Axes, grid: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.tick_params(length=0, labelsize=8.5, colors=_INK)
    for side in ("top", "right", "left" if grid == "x" else "bottom"):
        axes.spines[side].set_visible(False)


# Plots ----------------------------------------------------------------------------------------------------------------


def comparison_plot(cells: Sequence[Cell], titles: dict[str, str], path: Path) -> None:
    """AA and FM of each strategy side by side: a dot the mean, a bar the deviation, small dots the cells."""
    groups = _by_strategy(cells, titles)
    figure = _new_figure(9.0, 1.1 + 0.42 * len(groups))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
    numbers = {name: [cell_numbers(cell) for cell in own] for name, own in groups.items()}
    for axes, key, title in ((left, "aa", "AA after the last step, IoU x 100"), (right, "fm", "FM: points forgotten")):
        for row, (name, own) in enumerate(numbers.items()):
            _dots(axes, row, [100 * found[key] for found in own if key in found], _colour(name, titles))
        axes.set_title(title, fontsize=9.5, color=_INK, loc="left", fontweight="bold")
        _style(axes, "x")
    if plain := [found["aa"] for found in numbers.get(_PLAIN, [])]:
        left.axvline(100 * stat_of(plain).mean, color=_MUTED, linestyle="--", linewidth=1, zorder=1)
    right.axvline(0, color=_MUTED, linewidth=1, zorder=1)
    left.set_yticks(range(len(groups)), [titles[name] for name in groups])
    left.set_ylim(len(groups) - 0.5, -0.5)
    figure.tight_layout()
    _save(figure, path)


def _dots(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    if not values:
        return
    stat = stat_of(values)
    axes.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.35, linewidths=0, zorder=2)
    if not math.isnan(stat.std):
        axes.plot([stat.mean - stat.std, stat.mean + stat.std], [row, row], color=colour, linewidth=2.2, zorder=3)
    axes.scatter([stat.mean], [row], s=44, color=colour, zorder=4)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    label: dict[str, Any] = {"fontsize": 8, "color": _INK, "ha": "center", "va": "bottom", "bbox": paper}
    offset: Any = (0, 6)
    axes.annotate(f"{round(stat.mean, 1) + 0.0:.1f}", (stat.mean, row), offset, textcoords="offset points", **label)


def forgetting_plot(cells: Sequence[Cell], titles: dict[str, str], path: Path) -> None:
    """One panel an order: the mean IoU of the domains learnt so far after each step, over the seeds.

    Domains differ in difficulty, so a curve is read against the dashed one of plain SAM on the same domains. A
    strategy that was measured after the last step alone is a dot there.
    """
    stepwise = [cell for cell in cells if _is_stepwise(cell)]
    orders = dict.fromkeys((cell.order_name, cell.order) for cell in stepwise or cells)
    figure = _new_figure(4.6 * len(orders) + 1.6, 3.9)
    panels = figure.subplots(1, len(orders), sharey=True, squeeze=False)[0]
    for axes, (name, order) in zip(panels, orders, strict=True):
        for strategy, own in _by_strategy(cells, titles).items():
            _curve(axes, [_in_order(cell, order) for cell in own], strategy, titles, order)
        axes.set_xticks(range(1, len(order) + 1), order, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_title(f"order {name}", fontsize=9.5, color=_INK, loc="left", fontweight="bold")
        _style(axes, "y")
    panels[0].set_ylabel("mean IoU x 100, domains so far", fontsize=8.5, color=_INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1, 0.97 - 0.045 * math.ceil(len(labels) / 3)))
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def _is_stepwise(cell: Cell) -> bool:
    """Whether every step was measured; plain SAM and what is learnt at once do not depend on the order."""
    return set(cell.frame["step"]) == set(range(len(cell.order) + 1))


def _in_order(cell: Cell, order: tuple[str, ...]) -> Cell | None:
    if cell.order == order:
        return cell
    return None if _is_stepwise(cell) else replace(cell, order=order)


def _curve(
    axes: Axes, found: Sequence[Cell | None], strategy: str, titles: dict[str, str], order: Sequence[str]
) -> None:
    own = [cell for cell in found if cell is not None]
    if not own:
        return
    values = 100 * np.array([curve(cell) for cell in own])
    steps, mean = np.arange(1, len(order) + 1), values.mean(axis=0)
    there = ~np.isnan(mean)
    style: dict[str, Any] = {"color": _colour(strategy, titles), "label": titles[strategy]}
    if strategy == _PLAIN:
        style |= {"linestyle": "--", "linewidth": 1.3}
    else:
        style |= {"linewidth": 1.8, "marker": "o", "markersize": 4.5 if there.sum() > 1 else 8}
    axes.plot(steps[there], mean[there], **style)
    if len(own) > 1 and there.sum() > 1:
        spread = values.std(axis=0, ddof=1)
        low, high = (mean - spread)[there], (mean + spread)[there]
        axes.fill_between(steps[there], low, high, color=style["color"], alpha=0.12, linewidth=0)


def r_matrix_plots(cells: Sequence[Cell], order_name: str, folder: Path) -> list[Path]:
    """``r_matrix_<strategy>.png``: the mean over the seeds of one order; another one where this was not measured.

    Plain SAM is row 0 of all of them, and what is learnt at once has no steps: both have none.
    """
    paths = []
    stepwise = [cell for cell in cells if _is_stepwise(cell)]
    for strategy in dict.fromkeys(cell.strategy for cell in stepwise):
        own = [cell for cell in stepwise if cell.strategy == strategy]
        chosen = order_name if order_name in {cell.order_name for cell in own} else own[0].order_name
        same = [cell for cell in own if cell.order_name == chosen]
        paths.append(folder / f"r_matrix_{strategy}.png")
        r_matrix_heatmap(mean_frame(same), "iou", paths[-1], same[0].order)
    return paths


# The stream -----------------------------------------------------------------------------------------------------------


def domain_sheet(spec: StreamSpec, seed: int, path: Path, *, tile_px: int = 128) -> None:
    """A JPEG with a row a domain: its name, and the first test images of a seed, each beside its mask."""
    from PIL import Image

    count = min(_NUM_IMAGES, spec.num_test)
    left, gap, pair = 200, 10, 2 * tile_px + 2
    width, height = left + count * (pair + gap) + gap, len(spec.domains) * (tile_px + gap) + gap
    figure = _new_figure(width / _SHEET_DPI, height / _SHEET_DPI, _SHEET_DPI)
    for row, (name, domain) in enumerate(spec.domains.items()):
        top = gap + row * (tile_px + gap)
        role = {"learn": "", "natural": "natural images", "unseen": "never learnt"}[domain.role]
        _caption(figure, (gap, top + tile_px / 2), (width, height), name, [*_wrapped(domain.description), role])
        for index in range(count):
            image, mask = draw(domain.scene, size_px=spec.size_px, seed=seed, split="test", index=index)
            for part, picture in enumerate((image, overlay(image, None, mask))):
                x = left + index * (pair + gap) + part * (tile_px + 2)
                figure.figimage(_fitted(picture, tile_px), x, height - top - tile_px, origin="upper")
    canvas: Any = figure.canvas
    canvas.draw()
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    write_atomic(path, buffer.getvalue())


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 30)


def _caption(
    figure: Figure, place: tuple[float, float], size: tuple[int, int], name: str, lines: Sequence[str]
) -> None:
    x, y = place[0] / size[0], 1 - place[1] / size[1]
    style: dict[str, Any] = {"ha": "left"}
    figure.text(x, y + 6 / size[1], name, fontsize=11, fontweight="bold", color=_INK, va="bottom", **style)
    text = "\n".join(line for line in lines if line)
    figure.text(x, y - 4 / size[1], text, fontsize=8, color=_MUTED, va="top", linespacing=1.4, **style)


def _fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    import cv2

    smooth = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=smooth), dtype=np.uint8)
