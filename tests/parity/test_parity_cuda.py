"""The same recorded numbers on a GPU in float32, and masks in bfloat16. Skipped where there is no CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

MIN_IOU_BF16 = 0.99


@pytest.fixture
def float32_products() -> Iterator[None]:
    """TF32 keeps ten bits of each factor: too few for these comparisons."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=["sam1", "sam2"])
def on_cuda(
    request: pytest.FixtureRequest,
    network_case: Any,
    recipe: Any,
    golden: Any,
    synthetic_prompts: Any,
    parity: Any,
    float32_products: None,
) -> Any:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch finds none")
    arrays = golden(f"{request.param}_forward")
    found = network_case.open_case(request.param, recipe, arrays, synthetic_prompts, "cuda")
    found.parity, found.on = parity, ", CUDA"
    return found


@pytest.mark.gpu
@pytest.mark.slow
def test_float32_forward(on_cuda: Any) -> None:
    on_cuda.check_embedding()
    on_cuda.check_masks("zeroshot", on_cuda.suffix())
    on_cuda.check_blocks("zeroshot")
    on_cuda.check_masks("recipe", on_cuda.suffix(on_cuda.module_hooks()))
    on_cuda.check_blocks("recipe")


@pytest.mark.gpu
@pytest.mark.slow
def test_float32_gradients(on_cuda: Any, golden: Any) -> None:
    on_cuda.check_gradients(golden(f"gradients_{on_cuda.family}"))


@pytest.mark.gpu
@pytest.mark.slow
def test_bfloat16_masks(on_cuda: Any) -> None:
    on_cuda.check_bfloat16(MIN_IOU_BF16)


@pytest.mark.slow
def test_bfloat16_masks_on_the_cpu(sam2: Any, parity: Any) -> None:
    """The same arithmetic where there is no GPU: says whether the bound is a matter of rounding alone."""
    sam2.parity = parity
    sam2.check_bfloat16(MIN_IOU_BF16)
