from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from samcl_core.bank.packing import DEFAULT_DTYPE, pack, packed_shapes, unpack
from samcl_core.config import PROFILES
from samcl_core.errors import BankError


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"B.weight": drawn(6, 4), "A.weight": drawn(3, 2, 5), "A.bias": drawn(3), "gain": drawn(1)[0]}


def test_float32_is_the_tensors_themselves(tensors: dict[str, Tensor]) -> None:
    packed = pack(tensors, "float32")
    assert list(packed) == list(tensors)
    assert all(torch.equal(packed[name], tensors[name]) for name in tensors)
    assert all(unpack(packed)[name] is packed[name] for name in tensors)


def test_half_precision_rounds_each_weight_once(tensors: dict[str, Tensor]) -> None:
    packed = pack(tensors, "float16")
    assert {tensor.dtype for tensor in packed.values()} == {torch.float16}
    weights = unpack(packed)
    for name, tensor in tensors.items():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], tensor, rtol=2**-11, atol=2**-25)
    again = pack(weights, "float16")
    assert all(torch.equal(again[name], packed[name]) for name in packed)


def test_the_default_is_the_default_profiles(tensors: dict[str, Tensor]) -> None:
    assert PROFILES["default"]["train"]["module_dtype"] == DEFAULT_DTYPE
    assert all(torch.equal(tensor, pack(tensors, DEFAULT_DTYPE)[name]) for name, tensor in pack(tensors).items())


def test_eight_bits_are_within_half_a_step_of_each_row(tensors: dict[str, Tensor]) -> None:
    packed = pack(tensors, "int8")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in packed.items()} == {
        "B.weight": (torch.int8, (6, 4)),
        "B.weight:scale": (torch.float16, (6,)),
        "A.weight": (torch.int8, (3, 2, 5)),
        "A.weight:scale": (torch.float16, (3,)),
        "A.bias": (torch.float16, (3,)),
        "gain": (torch.float16, ()),
    }
    weights = unpack(packed)
    assert list(weights) == sorted(tensors)
    for name in ("A.weight", "B.weight"):
        rows, found = tensors[name].flatten(1), weights[name].flatten(1)
        step = rows.abs().amax(1, keepdim=True) / 127
        # The step itself is rounded to half precision, so that 127 steps are off by up to 127 / 2048 of one.
        assert ((rows - found).abs() <= (0.5 + 127 / 2048) * step).all()
        assert (packed[name].flatten(1).abs().amax(1) == 127).all(), "all levels are used, in every row"


def test_packing_eight_bits_again_changes_nothing(tensors: dict[str, Tensor]) -> None:
    packed = pack(tensors, "int8")
    again = pack(unpack(packed), "int8")
    assert packed.keys() == again.keys() and all(torch.equal(again[name], packed[name]) for name in packed)


def test_rows_of_zeros_stay_zeros_and_small_rows_keep_their_weights() -> None:
    rows = torch.stack([torch.zeros(4), drawn(4, scale=1e-6), drawn(4)])
    packed = pack({"w": rows}, "int8")
    assert packed["w:scale"].dtype == torch.float32, "a step below 6e-5 is too rough in half precision"
    found = unpack(packed)["w"]
    assert torch.equal(found[0], rows[0])
    torch.testing.assert_close(found[1], rows[1], rtol=0, atol=float(rows[1].abs().max()) / 250)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("value", [65_520.0, -1e30, float("inf"), float("nan")])
def test_what_half_precision_cannot_hold_stays_float32(dtype: Any, value: float) -> None:
    large = drawn(3, 4)
    large[1, 2] = value
    packed = pack({"large": large, "small": drawn(3, 4)}, dtype)
    assert packed["large"].dtype == torch.float32 and "large:scale" not in packed
    assert packed["small"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(unpack(packed)["large"], large, rtol=0, atol=0, equal_nan=True)


def test_no_trained_tensor_is_changed_or_kept(tensors: dict[str, Tensor]) -> None:
    trained = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    for dtype in ("float32", "float16", "int8"):
        assert not any(tensor.requires_grad for tensor in pack(trained, dtype).values())
    assert all(torch.equal(trained[name], tensors[name]) for name in tensors)


def test_empty_tensors_and_none() -> None:
    assert pack({}, "int8") == {} == unpack({})
    assert unpack(pack({"w": torch.zeros(0, 3)}, "int8"))["w"].shape == (0, 3)


def test_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match=r"dtype is 'int4', expected one of \['float32', 'float16', 'int8'\]"):
        pack({"w": drawn(2)}, "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'w:scale'"):
        pack({"w:scale": drawn(2)})


EIGHT = torch.ones(3, 4, dtype=torch.int8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"w": EIGHT}, r"tensor w is torch\.int8 with no scale"),
        ({"w": torch.ones(3, 4), "w:scale": torch.ones(3)}, r"tensor w is torch\.float32 with a scale"),
        ({"w": EIGHT.long(), "w:scale": torch.ones(3)}, r"tensor w is torch\.int64 with a scale"),
        ({"w": EIGHT.bool()}, r"tensor w is torch\.bool with no scale"),
        ({"w": EIGHT, "w:scale": torch.ones(4)}, r"scale of w \(3, 4\) is torch\.float32 \(4,\), expected one float"),
        ({"w": EIGHT, "w:scale": torch.ones(3, 1)}, r"scale of w \(3, 4\) is torch\.float32 \(3, 1\)"),
        ({"w": EIGHT, "w:scale": torch.ones(3).long()}, r"scale of w \(3, 4\) is torch\.int64"),
        ({"w": EIGHT[0, 0], "w:scale": torch.ones(())}, r"scale of w \(\) is"),
        ({"w:scale": torch.ones(3)}, r"\['w:scale'\] are scales of tensors that are not there"),
    ],
)
def test_stored_tensors_that_do_not_fit(changes: dict[str, Tensor], match: str) -> None:
    for read in (unpack, packed_shapes):
        with pytest.raises(BankError, match=match):
            read({"other": torch.ones(2), **changes})
