from __future__ import annotations

import itertools

import pytest
import torch

from samcl_core.errors import BankError
from samcl_core.selectors.compact import FixedPoint, pack_rows, unpack_rows


def symmetric(scale: float, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return matrix + matrix.T


@pytest.mark.parametrize("exponent", range(-100, 101, 7))
def test_fixed_point_keeps_numbers_of_any_magnitude(exponent: int) -> None:
    matrix = symmetric(2.0**exponent)
    fixed = FixedPoint.of(matrix)
    assert len(fixed.levels) == 1 and next(iter(fixed.levels.values())).dtype == torch.int64
    assert (fixed.matrix() - matrix).abs().max() <= 2.0**-26 * matrix.abs().max()


def test_usual_numbers_are_multiples_of_two_to_the_minus_32() -> None:
    for scale in (0.1, 1.0, 1e4):
        matrix = symmetric(scale)
        fixed = FixedPoint.of(matrix)
        assert list(fixed.levels) == [0]
        assert (fixed.matrix() - matrix).abs().max() <= 2.0**-33
    assert FixedPoint.of(torch.zeros(6, 6, dtype=torch.float64)).levels == {}


def test_sums_are_the_same_in_any_order() -> None:
    parts = [FixedPoint.of(symmetric(scale, seed)) for seed, scale in enumerate((1e-9, 1.0, 3.0, 1e9, 0.0))]
    results = []
    for order in itertools.permutations(parts):
        total = FixedPoint(6)
        for part in order:
            total = total + part
        results.append(total)
    assert list(results[0].levels) == [-1, 0, 1]
    for other in results[1:]:
        assert list(other.levels) == list(results[0].levels)
        assert all(torch.equal(other.levels[k], results[0].levels[k]) for k in other.levels)
        assert torch.equal(other.matrix(), results[0].matrix())


def test_thousands_of_the_largest_fit_and_an_overflow_is_refused() -> None:
    part = FixedPoint.of(torch.full((1, 1), 2.0**18 - 1, dtype=torch.float64))
    total = FixedPoint(1)
    for _ in range(4096):
        total = total + part
    assert float(total.matrix()) == 4096 * (2.0**18 - 1)
    with pytest.raises(BankError, match="2\\^12"):
        total + part


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_packed_rows_come_back(scale: float) -> None:
    columns = torch.logspace(-3, 3, 40, dtype=torch.float64) * scale
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * columns
    rows[:, 7] = 0
    packed = pack_rows(rows)
    assert packed.dtype == torch.int8 and packed.shape == (7, 40)
    assert ((unpack_rows(packed) - rows).abs() <= rows.abs().amax(0) / 127).all()
    both = unpack_rows(torch.stack([packed, packed]))
    assert torch.equal(both[1], unpack_rows(packed))
