"""A row of JSON values is read, or refused with its number, what was found and what was expected."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samcl_core.errors import ImageError, PromptError, SamclError, UsageError
from samcl_core.inference import Prompt
from samcl_core.serving import read_request

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
MODULES = ("plain", "Polyps")


def encoded(form: str = "PNG") -> str:
    stream = BytesIO()
    Image.fromarray(PIXELS).save(stream, format=form)
    return base64.b64encode(stream.getvalue()).decode()


def read(**row: Any) -> Any:
    return read_request({"points": [[10, 5]], **row}, 7, MODULES)


def test_points_are_scaled_and_labels_default_to_foreground() -> None:
    request = read(image=encoded(), points=[[10, 5], [35, 15]])
    np.testing.assert_array_equal(request.image, PIXELS)
    assert request.prompt == Prompt(((256.0, 256.0), (896.0, 768.0)), (1, 1))
    assert request.module == "auto"


def test_a_box_alone_a_module_and_missing_values() -> None:
    row = {"image": encoded(), "points": None, "labels": float("nan"), "box": [0, 0, 40, 20], "module": "Polyps"}
    request = read_request(row, 0, MODULES)
    assert request.prompt == Prompt(box=(0.0, 0.0, 1024.0, 1024.0))
    assert request.module == "Polyps"


@pytest.mark.parametrize("array", [PIXELS, PIXELS.tolist(), PIXELS.astype(np.int64)])
def test_an_array_is_the_image(array: Any) -> None:
    request = read(image_array=array)
    np.testing.assert_array_equal(request.image, PIXELS)
    assert request.image.dtype == np.uint8


def test_data_addresses_and_broken_lines_are_base64_too() -> None:
    text = encoded()
    for form in (f"data:image/png;base64,{text}", f"{text[:40]}\n{text[40:]}"):
        np.testing.assert_array_equal(read(image=form).image, PIXELS)
    assert read(image=encoded("JPEG")).image.shape == PIXELS.shape


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({}, ImageError, "row 7: no image, expected either image"),
        ({"image": encoded(), "image_array": PIXELS}, ImageError, "row 7: image and image_array, expected either"),
        ({"image": "no base64!"}, ImageError, "row 7: image is 'no base64!', expected base64"),
        ({"image": "AAAA"}, ImageError, "row 7, image of 3 bytes: cannot be read: not an image"),
        ({"image": encoded()[:400]}, ImageError, r"row 7, image of 300 bytes: cannot be read"),
        ({"image": 5}, ImageError, "row 7: image is 5, expected base64"),
        ({"image_array": [[1, 2], [3]]}, ImageError, "row 7: image_array is ragged"),
        ({"image_array": [[1, 2], [3, 4]]}, ImageError, r"row 7: image_array has shape \(2, 2\)"),
        ({"image_array": PIXELS / 255}, ImageError, "of float64, expected height x width x 3 whole numbers"),
        ({"image_array": PIXELS.astype(int) + 1}, ImageError, r"values \d+\.\.256, expected 0\.\.255"),
        ({"image": encoded(), "points": [[40, 5]]}, PromptError, r"row 7: point \(40, 5\) is outside .* 40 x 20"),
        ({"image": encoded(), "points": [[1, float("nan")]]}, PromptError, r"row 7: point \(1, nan\) is outside"),
        ({"image": encoded(), "points": [[1, 2], [3]]}, PromptError, r"row 7: points\[1\] is \[3\], expected \[x, y\]"),
        ({"image": encoded(), "points": [["1", 2]]}, PromptError, r"points\[0\] is \['1', 2\], expected .* numbers"),
        ({"image": encoded(), "points": 3}, PromptError, "row 7: points is 3, expected a list"),
        ({"image": encoded(), "labels": [1, 0]}, PromptError, r"row 7: 1 point\(s\) but 2 label\(s\)"),
        ({"image": encoded(), "labels": [2]}, PromptError, "row 7: point label 2, expected 1"),
        ({"image": encoded(), "points": []}, PromptError, "row 7: no prompt: expected at least one point or a box"),
        (
            {"image": encoded(), "box": [1, 2, 3]},
            PromptError,
            r"row 7: box is \[1, 2, 3\], expected \[x0, y0, x1",
        ),
        ({"image": encoded(), "box": [5, 5, 5, 9]}, PromptError, "row 7: box .* is empty"),
        ({"image": encoded(), "box": [0, 0, 41, 9]}, PromptError, "row 7: box .* is outside of the image of 40 x 20"),
        ({"image": encoded(), "module": "Rail"}, UsageError, r"row 7: module is 'Rail', expected one of \['auto', 'pl"),
        ({"image": encoded(), "label": [1]}, UsageError, "row 7: column 'label', expected one of"),
    ],
)
def test_a_wrong_row_is_refused(row: dict[str, Any], kind: type[SamclError], message: str) -> None:
    with pytest.raises(kind, match=message):
        read(**row)
