from __future__ import annotations

import pytest
import torch

from samcl_core.selectors.compact import pack_rows, pack_scaled_rows, unpack_rows, unpack_scaled_rows


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


def test_short_rows_keep_as_many_digits_as_long_ones() -> None:
    lengths = torch.logspace(9, -9, 6, dtype=torch.float64)[:, None]
    columns = torch.logspace(-3, 3, 40, dtype=torch.float64)
    unit = torch.nn.functional.normalize(
        torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * columns
    )
    unit[4] = 0
    packed, found = pack_scaled_rows(unit * lengths)
    assert packed.shape == (7, 40) and found.shape == (6,) and found.dtype == torch.float32 and found[4] == 0
    again = unpack_scaled_rows(packed, found)
    assert ((again / lengths - unit).abs() <= unit.abs().amax(0) / 120).all()
    both = unpack_scaled_rows(torch.stack([packed, packed]), torch.stack([found, found]))
    assert torch.equal(both[1], again)
