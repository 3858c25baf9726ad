"""The same rows give the same bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from samcl_core.domains.manifest import QUARANTINED, Record, read_manifest, write_manifest
from samcl_core.errors import DataError

RECORDS = [
    Record("train/images/b.png", "train", width=7, height=5, foreground_frac=0.25),
    Record("train/images/a.png", "train", image="train/images/a.png"),
    Record("test/images/ü.png", "test"),
    Record("raw/x.png", "", status=QUARANTINED, reason="the mask is empty"),
]


def test_order_does_not_matter_and_rows_come_back(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.parquet", RECORDS)
    write_manifest(tmp_path / "b.parquet", reversed(RECORDS))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    frame = read_manifest(tmp_path / "a.parquet")
    assert frame["id"].tolist() == ["test/images/ü.png", "train/images/a.png", "train/images/b.png", "raw/x.png"]
    rows = sorted(frame.to_dict("records"), key=str)
    assert rows == sorted((asdict(record) for record in RECORDS), key=str)


def test_an_empty_manifest_has_its_columns(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", [])
    assert list(read_manifest(tmp_path / "m.parquet").columns) == list(asdict(RECORDS[0]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"m\.parquet: cannot be read as Parquet"):
        read_manifest(path)
    pd.DataFrame({"id": ["x"]}).to_parquet(path)
    with pytest.raises(DataError, match="'split', 'status', 'width'"):
        read_manifest(path)
