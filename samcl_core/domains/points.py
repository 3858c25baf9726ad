"""Prompts from masks, and the published ``points.json``. Everything is in the 1024 x 1024 frame, x right, y down."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.errors import DataError, PromptError
from samcl_core.files import write_atomic

__all__ = [
    "FRAME_PX",
    "WHOLE_FRAME",
    "Box",
    "PointSet",
    "box_of",
    "parse_points",
    "read_boxes",
    "read_object",
    "read_points",
    "reference_points",
    "sample_points",
    "write_boxes",
    "write_object",
    "write_points",
]

FRAME_PX = 1024
"""Side of the square frame of points and boxes, whatever the size of the image (published layout)."""

PointSet = tuple[tuple[tuple[float, float], ...], tuple[int, ...]]
"""Points ``(x, y)`` and as many labels: 1 foreground, 0 background."""

Box = tuple[float, float, float, float]
"""``x0, y0, x1, y1``."""

WHOLE_FRAME: Box = (0.0, 0.0, float(FRAME_PX), float(FRAME_PX))
"""The box of an image without an object."""


def sample_points(
    mask: NDArray[np.bool_], num_points: int, num_background_points: int = 0, *, key: str, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw points from a mask: foreground first, then background.

    The draw depends on ``mask``, ``key`` and ``seed`` alone: not on other images, their order, the number of workers
    or the version of numpy. The first points stay the same when more are asked for. Pixels are drawn without
    repetition while there are enough of them.

    Args:
        mask: (H, W) bool.
        num_points: how many foreground points, at least 1; of a mask without foreground as many background points.
        num_background_points: how many points outside the mask; none where the mask covers the whole image.
        key: names the mask; its sha256.
        seed: of the workspace.

    Returns:
        (N, 2) points at pixel centres, ``x = (column + 0.5) * 1024 / W``, and (N,) labels 1 or 0.
    """
    flat = mask.ravel()
    inside, outside = np.flatnonzero(flat), np.flatnonzero(~flat)
    # The published code's answer to an empty mask, too: a point of the background.
    num_others = num_background_points if len(inside) else max(num_points, num_background_points)
    picked = inside[_draw(len(inside), num_points, f"{key}:{seed}:foreground")]
    others = outside[_draw(len(outside), num_others, f"{key}:{seed}:background")]
    rows, columns = np.divmod(np.concatenate([picked, others]), mask.shape[1])
    scale = np.array([FRAME_PX / mask.shape[1], FRAME_PX / mask.shape[0]])
    points = (np.stack([columns, rows], axis=1) + 0.5) * scale
    return points, np.repeat(np.array([1, 0]), [len(picked), len(others)])


def _draw(population: int, count: int, key: str) -> NDArray[np.int64]:
    """``count`` indices below ``population``, distinct while possible: index i is a sha256 of the key and i."""
    if population == 0:
        return np.zeros(0, dtype=np.int64)
    drawn: list[int] = []
    seen: set[int] = set()
    counter = 0
    while len(drawn) < count:
        digest = hashlib.sha256(f"{key}:{counter}".encode()).digest()
        index = int.from_bytes(digest[:16], "big") % population
        counter += 1
        if index not in seen:
            drawn.append(index)
            seen.add(index)
        if len(seen) == population:
            seen.clear()
    return np.array(drawn, dtype=np.int64)


def reference_points(
    mask_1024: NDArray[Any], num_points: int, rng: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The published sampling, draw for draw.

    Args:
        mask_1024: (1024, 1024) bool or 0/1, resized with nearest neighbour.
        num_points: how many points; all of them are foreground.
        rng: legacy numpy stream; it moves on.

    Returns:
        (num_points, 2) whole pixel coordinates x, y and (num_points,) labels. With ``num_points`` 1, an empty mask
        gives one background point with label 0.

    Raises:
        PromptError: the mask is empty and more than one point is asked for.
    """
    mask = np.asarray(mask_1024) > 0
    foreground = np.argwhere(mask)[:, ::-1]
    if num_points == 1:
        places = foreground if len(foreground) else np.argwhere(~mask)[:, ::-1]
        point = places[rng.randint(len(places))]
        return point[None].astype(np.float32), np.array([int(len(foreground) > 0)], dtype=np.int32)
    if not len(foreground):
        raise PromptError(f"an empty mask has no foreground to draw {num_points} points from")
    picked = foreground[rng.choice(len(foreground), size=num_points, replace=True)]
    # The published code draws zero background points here: that call leaves the stream where it is.
    return picked[rng.permutation(num_points)].astype(np.float32), np.ones(num_points, dtype=np.int32)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around a mask: outer pixel edges, so that 0 <= x0 < x1 <= 1024.

    Raises:
        PromptError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise PromptError(f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels is empty: it has no box")
    across, down = FRAME_PX / mask.shape[1], FRAME_PX / mask.shape[0]
    return (
        float(columns[0] * across),
        float(rows[0] * down),
        float((columns[-1] + 1) * across),
        float((rows[-1] + 1) * down),
    )


def parse_points(entry: Any) -> PointSet:
    """One entry of ``points.json``, ``[[[x, y], ...], [label, ...]]``, checked.

    Raises:
        ValueError: another shape, another number of labels, a coordinate outside 0 <= c < 1024, a label not 0 or 1.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, list) for part in entry)):
        raise ValueError(f"expected [[[x, y], ...], [label, ...]], found {_short(entry)}")
    points, labels = entry
    if not points or len(points) != len(labels):
        raise ValueError(f"expected as many labels as points and at least one, found {len(points)} and {len(labels)}")
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(_is_coordinate(value) for value in point)):
            raise ValueError(f"expected [x, y] with 0 <= x, y < {FRAME_PX}, found {_short(point)}")
    for label in labels:
        if isinstance(label, bool) or label not in (0, 1):
            raise ValueError(f"expected label 1 (foreground) or 0 (background), found {_short(label)}")
    return tuple((float(x), float(y)) for x, y in points), tuple(int(label) for label in labels)


def read_points(path: Path) -> dict[str, PointSet]:
    """A ``points.json``: mask file name to points and labels.

    Raises:
        DataError: not JSON, or entries of another form; the first three are named.
    """
    entries = read_object(path)
    points: dict[str, PointSet] = {}
    problems = []
    for name, entry in entries.items():
        try:
            points[name] = parse_points(entry)
        except ValueError as exc:
            problems.append(f"{name}: {exc}")
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:3])
        raise DataError(
            f"{path}: {len(problems)} of {len(entries)} entries cannot be used{shown}",
            hint="correct the file, or set prompts.keep_existing: false in params.yaml to draw new points",
        )
    return points


def write_points(path: Path, points: Mapping[str, PointSet]) -> None:
    """Write a ``points.json`` as the published scripts read it, one mask a line, sorted by name."""
    write_object(
        path, {name: [[list(point) for point in places], list(labels)] for name, (places, labels) in points.items()}
    )


def read_boxes(path: Path) -> dict[str, Box]:
    """A ``boxes.json``: mask file name to box.

    Raises:
        DataError: not JSON, or an entry that is not four finite numbers with x0 < x1 and y0 < y1.
    """
    boxes: dict[str, Box] = {}
    for name, entry in read_object(path).items():
        if not (isinstance(entry, list) and len(entry) == 4 and all(_is_number(value) for value in entry)):
            raise DataError(f"{path}: {name}: expected [x0, y0, x1, y1], found {_short(entry)}")
        x0, y0, x1, y1 = (float(value) for value in entry)
        if not (0 <= x0 < x1 <= FRAME_PX and 0 <= y0 < y1 <= FRAME_PX):
            raise DataError(f"{path}: {name}: expected a box inside the {FRAME_PX} frame, found {_short(entry)}")
        boxes[name] = (x0, y0, x1, y1)
    return boxes


def write_boxes(path: Path, boxes: Mapping[str, Box]) -> None:
    """Write a ``boxes.json``, one mask a line, sorted by name; ``points.json`` has no room for them."""
    write_object(path, {name: list(box) for name, box in boxes.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_coordinate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < FRAME_PX


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from mask file names, its entries unchecked.

    Raises:
        DataError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(f"{path}: cannot be read as JSON: {exc}", hint="correct or remove this file") from exc
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: expected an object from mask file names, found {type(value).__name__}",
            hint="correct or remove this file",
        )
    return value


def write_object(path: Path, entries: Mapping[str, Sequence[Any]]) -> None:
    """Write a JSON object, one entry a line, sorted by name; the same entries give the same bytes."""
    lines = [f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
    write_atomic(path, ("{\n" + ",\n".join(lines) + "\n}\n" if lines else "{}\n").encode())
