"""Plots of a benchmark and the contact sheet of its domains. Same input, same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.benchmarks.methods import FAMILIES, parse_method, titles_of
from samcl_core.benchmarks.summary import cell_numbers, mean_frame, stat_of, step_numbers
from samcl_core.domains import Domain, load_image, load_mask
from samcl_core.domains.synthetic import draw
from samcl_core.drawing import overlay
from samcl_core.evaluation.pictures import r_matrix_heatmap
from samcl_core.files import write_atomic
from samcl_core.stages.places import Places

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from samcl_core.benchmarks.streams import StreamSpec
    from samcl_core.benchmarks.units import Cell

__all__ = ["bytes_plot", "comparison_plot", "domain_sheet", "forgetting_plot", "r_matrix_plots"]

_DPI = 150
_SHEET_DPI = 100
_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_COLOURS = (
    *("#7b8794", "#2b8a3e", "#1c6dd0", "#0ca5b0", "#7048e8", "#e8590c", "#c2255c", "#b08900", "#495057", "#5c940d"),
    *("#a61e4d", "#0b7285", "#862e9c", "#d9480f", "#364fc7", "#087f5b", "#f08c00", "#845ef7", "#e64980", "#15aabf"),
)
_MARKERS = dict(zip(FAMILIES, ("_", "s", "^", "o"), strict=True))
_PLAIN = "zero_shot"
_NUM_IMAGES = 4
_LEGEND_COLUMNS = 3
_HANDLE_IN, _LETTER_IN = 0.5, 0.06
"""Inches that a mark of the legend and a letter of its text take, at 8 points."""


class _Look:
    """Colour and marker of each strategy: families differ in their marker."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.titles = titles_of([cell.strategy for cell in cells])
        self.cells = {name: [cell for cell in cells if cell.strategy == name] for name in self.titles}

    def colour(self, strategy: str) -> str:
        return _COLOURS[list(self.titles).index(strategy) % len(_COLOURS)]

    def marker(self, strategy: str) -> str:
        return _MARKERS[parse_method(strategy).family]


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


def comparison_plot(cells: Sequence[Cell], path: Path) -> None:
    """AA and FM of each strategy side by side: a dot the mean, a bar the deviation, small dots the cells."""
    look = _Look(cells)
    figure = _new_figure(9.6, 1.1 + 0.42 * len(look.titles))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
    numbers = {name: [cell_numbers(cell) for cell in own] for name, own in look.cells.items()}
    for axes, key, title in ((left, "aa", "AA after the last step, IoU x 100"), (right, "fm", "FM: points forgotten")):
        for row, (name, own) in enumerate(numbers.items()):
            _dots(axes, row, [100 * found[key] for found in own if key in found], look.colour(name))
        axes.set_title(title, fontsize=9.5, color=_INK, loc="left", fontweight="bold")
        _style(axes, "x")
    if plain := [found["aa"] for found in numbers.get(_PLAIN, [])]:
        left.axvline(100 * stat_of(plain).mean, color=_MUTED, linestyle="--", linewidth=1, zorder=1)
    right.axvline(0, color=_MUTED, linewidth=1, zorder=1)
    left.set_yticks(range(len(look.titles)), list(look.titles.values()))
    left.set_ylim(len(look.titles) - 0.5, -0.5)
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


def bytes_plot(cells: Sequence[Cell], path: Path) -> None:
    """Last-IoU against the bytes stored for it (model and memory, logarithmic), a mark a strategy.

    Plain SAM stores nothing: it is the dashed line. A strategy whose cells do not say their bytes is left out.
    """
    look = _Look(cells)
    figure = _new_figure(11.0, 5.2)
    axes = figure.subplots()
    for strategy, own in look.cells.items():
        numbers = [cell_numbers(cell) for cell in own]
        last = 100 * stat_of([found["last"] for found in numbers]).mean
        if strategy == _PLAIN:
            axes.axhline(last, color=_MUTED, linestyle="--", linewidth=1, zorder=1)
        sizes = [found["stored_bytes"] / 1024 for found in numbers if found.get("stored_bytes", 0) > 0]
        if sizes:
            style: dict[str, Any] = {"color": look.colour(strategy), "marker": look.marker(strategy)}
            axes.scatter(stat_of(sizes).mean, last, s=52, label=look.titles[strategy], zorder=3, **style)
    axes.set_xscale("log")
    axes.set_xlabel("stored, KiB: model and memory", fontsize=8.5, color=_INK)
    axes.set_ylabel("Last-IoU x 100", fontsize=8.5, color=_INK)
    _style(axes, "both")
    _legend(figure, axes)
    _save(figure, path)


def forgetting_plot(cells: Sequence[Cell], path: Path) -> None:
    """Two panels an order: ``AA_i`` and ``FM_i`` after each step, over the seeds.

    Domains differ in difficulty, so AA is read against the dashed curve of plain SAM on the same domains. A strategy
    that was measured after the last step alone is a dot there.
    """
    look = _Look(cells)
    stepwise = [cell for cell in cells if _is_stepwise(cell)]
    orders = dict.fromkeys((cell.order_name, cell.order) for cell in stepwise or cells)
    figure = _new_figure(4.6 * len(orders) + 1.6, 6.6)
    panels = figure.subplots(2, len(orders), sharey="row", squeeze=False)
    kinds = (("aa", "AA: mean IoU x 100, domains so far"), ("fm", "FM: points forgotten so far"))
    for line, (key, title) in zip(panels, kinds, strict=True):
        for axes, (name, order) in zip(line, orders, strict=True):
            for strategy, own in look.cells.items():
                _curve(axes, [_in_order(cell, order) for cell in own], strategy, look, key)
            axes.set_xticks(range(1, len(order) + 1), order, rotation=35, ha="right", rotation_mode="anchor")
            axes.set_title(f"order {name}", fontsize=9.5, color=_INK, loc="left", fontweight="bold")
            _style(axes, "y")
        line[0].set_ylabel(title, fontsize=8.5, color=_INK)
    _legend(figure, panels[0][0])
    _save(figure, path)


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend of ``axes`` above the whole figure, and room for it."""
    handles, labels = axes.get_legend_handles_labels()
    widest = _HANDLE_IN + _LETTER_IN * max(map(len, labels), default=1)
    num_columns = max(1, min(_LEGEND_COLUMNS, int(figure.get_figwidth() / widest)))
    num_lines = math.ceil(len(labels) / num_columns)
    height = float(figure.get_figheight())
    figure.set_figheight(height + 0.19 * num_lines)
    figure.tight_layout(rect=(0, 0, 1, height / (height + 0.19 * num_lines) - 0.01))
    figure.legend(handles, labels, loc="upper center", ncols=num_columns, fontsize=8, frameon=False)


def _is_stepwise(cell: Cell) -> bool:
    """Whether every step was measured; plain SAM and what is learnt at once do not depend on the order."""
    return set(cell.frame["step"]) == set(range(len(cell.order) + 1))


def _in_order(cell: Cell, order: tuple[str, ...]) -> Cell | None:
    if cell.order == order:
        return cell
    return None if _is_stepwise(cell) else replace(cell, order=order)


def _curve(axes: Axes, found: Sequence[Cell | None], strategy: str, look: _Look, key: str) -> None:
    values = 100 * np.array([step_numbers(cell, key) for cell in found if cell is not None])
    if not len(values):
        return
    steps, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
    there = ~np.isnan(mean)
    style: dict[str, Any] = {"color": look.colour(strategy), "label": look.titles[strategy]}
    if strategy == _PLAIN:
        style |= {"linestyle": "--", "linewidth": 1.3}
    else:
        size = 4.5 if there.sum() > 1 else 8
        style |= {"linewidth": 1.5, "marker": look.marker(strategy), "markersize": size}
    axes.plot(steps[there], mean[there], **style)
    if len(values) > 1 and there.sum() > 1:
        spread = values.std(axis=0, ddof=1)
        low, high = (mean - spread)[there], (mean + spread)[there]
        axes.fill_between(steps[there], low, high, color=style["color"], alpha=0.1, linewidth=0)


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
        paths.append(folder / f"r_matrix_{strategy.replace('@', '-')}.png")
        r_matrix_heatmap(mean_frame(same), "iou", paths[-1], same[0].order)
    return paths


# The stream -----------------------------------------------------------------------------------------------------------


def domain_sheet(root: Path, spec: StreamSpec, seed: int, path: Path, *, tile_px: int = 128) -> None:
    """A JPEG with a row a domain: its name, and the first test images of a seed, each beside its mask.

    Drawn pictures are drawn again, others are read from the benchmark's folder ``root``.
    """
    from PIL import Image

    count = _NUM_IMAGES
    left, gap, pair = 200, 10, 2 * tile_px + 2
    width, height = left + count * (pair + gap) + gap, len(spec.domains) * (tile_px + gap) + gap
    figure = _new_figure(width / _SHEET_DPI, height / _SHEET_DPI, _SHEET_DPI)
    for row, (name, domain) in enumerate(spec.domains.items()):
        top = gap + row * (tile_px + gap)
        role = {"learn": "", "natural": "natural images", "unseen": "never learnt"}[domain.role]
        _caption(figure, (gap, top + tile_px / 2), (width, height), name, [*_wrapped(domain.description), role])
        for index, (image, mask) in enumerate(_first_images(root, spec, name, seed)):
            for part, picture in enumerate((image, overlay(image, None, mask))):
                x = left + index * (pair + gap) + part * (tile_px + 2)
                figure.figimage(_fitted(picture, tile_px), x, height - top - tile_px, origin="upper")
    canvas: Any = figure.canvas
    canvas.draw()
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    write_atomic(path, buffer.getvalue())


def _first_images(
    root: Path, spec: StreamSpec, name: str, seed: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    scene = spec.domains[name].scene
    if scene is not None:
        for index in range(min(_NUM_IMAGES, spec.num_test)):
            yield draw(scene, size_px=spec.size_px, seed=seed, split="test", index=index)
        return
    folder = Places(root / "seeds" / f"seed-{seed}").domain(name)
    for sample in Domain(folder).samples("test")[:_NUM_IMAGES]:
        yield load_image(sample.image), load_mask(sample.mask)


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
