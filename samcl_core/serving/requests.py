"""One row of a request to an image, its prompt and the wanted module. What is wrong is said with the row's number."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samcl_core.backbones.base import FRAME_PX
from samcl_core.domains.images import MAX_PIXELS, decode_image
from samcl_core.errors import ImageError, PromptError, SamclError, UsageError
from samcl_core.inference import Prompt

__all__ = ["AUTO", "COLUMNS", "Request", "prompt_in_pixels", "read_request"]

AUTO = "auto"
COLUMNS = ("image", "image_array", "points", "labels", "box", "module")
"""What a row may have. Exactly one of the first two; points or a box."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Request:
    """A row that can be answered.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        prompt: in the 1024 frame.
        module: ``auto``, ``plain`` or a domain of the bank.
    """

    image: NDArray[np.uint8]
    prompt: Prompt
    module: str


def read_request(row: Mapping[str, Any], position: int, modules: Sequence[str]) -> Request:
    """A row of JSON values, checked. Values that are missing, ``None`` or NaN count as not given.

    Args:
        row: ``image`` (base64 of an encoded image file) or ``image_array`` ((H, W, 3) numbers 0..255); ``points``
            ((N, 2) pixels of the image, x to the right), ``labels`` (N of 1 or 0; all 1 when not given) and ``box``
            (``x0, y0, x1, y1`` in pixels); ``module`` (``auto`` when not given).
        position: the row's number, the first is 0; every message begins with it.
        modules: names that may be forced, beside ``auto``.

    Raises:
        ImageError: no image, two, or one that cannot be read.
        PromptError: points, labels or box cannot be used.
        UsageError: an unknown column or module.
    """
    where = f"row {position}"
    given = {name: value for name, value in row.items() if not _is_absent(value)}
    try:
        if unknown := sorted(set(given) - set(COLUMNS)):
            raise UsageError(f"column {unknown[0]!r}, expected one of {list(COLUMNS)}")
        image = _read_image(given, where)
        points = [_numbers(point, 2, f"points[{at}]") for at, point in enumerate(_list(given, "points"))]
        labels = _list(given, "labels") if "labels" in given else [1] * len(points)
        box = _numbers(given["box"], 4, "box") if "box" in given else None
        prompt = prompt_in_pixels(points, labels, box, width=image.shape[1], height=image.shape[0])
        return Request(image, prompt, _read_module(given.get("module", AUTO), modules))
    except SamclError as exc:
        if exc.message.startswith(where):
            raise
        raise type(exc)(f"{where}: {exc.message}", hint=exc.hint) from exc


def prompt_in_pixels(
    points: Sequence[Sequence[float]],
    labels: Sequence[Any],
    box: Sequence[float] | None,
    *,
    width: int,
    height: int,
) -> Prompt:
    """Prompts in pixels of a ``width`` x ``height`` image in the square frame of the models.

    Raises:
        PromptError: no prompt at all, one outside of the image, or labels that do not fit the points.
    """
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(f"point ({x:g}, {y:g}) is outside of the image of {width} x {height} pixels")
    if box is not None and not (box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height):
        raise PromptError(f"box {tuple(box)} is outside of the image of {width} x {height} pixels")
    scale_x, scale_y = FRAME_PX / width, FRAME_PX / height
    scaled = None if box is None else (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
    return Prompt(tuple((x * scale_x, y * scale_y) for x, y in points), tuple(labels), scaled)


def _read_image(given: Mapping[str, Any], where: str) -> NDArray[np.uint8]:
    names = [name for name in ("image", "image_array") if name in given]
    if len(names) != 1:
        raise ImageError(f"{' and '.join(names) or 'no image'}, expected either image (base64) or image_array")
    if names == ["image_array"]:
        return _read_array(given["image_array"])
    text = given["image"]
    if not isinstance(text, str):
        raise ImageError(f"image is {_brief(text)}, expected base64 text of an image file")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageError(f"image is {_brief(text)}, expected base64 text of an image file: {exc}") from exc
    return decode_image(data, f"{where}, image of {len(data)} bytes")


def _read_array(value: Any) -> NDArray[np.uint8]:
    try:
        array = np.asarray(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError as exc:
        raise ImageError(f"image_array is ragged, expected height x width x 3 numbers 0..255: {exc}") from exc
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape or array.dtype.kind not in "iu":
        raise ImageError(
            f"image_array has shape {array.shape} of {array.dtype}, expected height x width x 3 whole numbers 0..255"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"image_array has shape {array.shape}, expected at most {MAX_PIXELS} pixels")
    if array.min() < 0 or array.max() > 255:
        raise ImageError(f"image_array has values {array.min()}..{array.max()}, expected 0..255")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _read_module(value: Any, modules: Sequence[str]) -> str:
    names = [AUTO, *modules]
    if not isinstance(value, str) or value not in names:
        raise UsageError(f"module is {_brief(value)}, expected one of {names}")
    return value


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name, [])
    if not isinstance(value, list | tuple | np.ndarray):
        raise PromptError(f"{name} is {_brief(value)}, expected a list")
    return list(value)


def _numbers(value: Any, count: int, name: str) -> tuple[Any, ...]:
    expected = "[x, y]" if count == 2 else "[x0, y0, x1, y1]"
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != count:
        raise PromptError(f"{name} is {_brief(value)}, expected {expected}")
    if not all(isinstance(part, int | float | np.number) and not isinstance(part, bool) for part in value):
        raise PromptError(f"{name} is {_brief(value)}, expected {expected} in numbers")
    return tuple(float(part) for part in value)


def _is_absent(value: Any) -> bool:
    # A table fills what a row does not have with one of these.
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
