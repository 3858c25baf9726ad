"""``manifest.parquet``: one row an instance, good or quarantined. The same rows give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from samcl_core.errors import DataError
from samcl_core.files import write_atomic
from samcl_core.parquet import read_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OK", "QUARANTINED", "Record", "read_manifest", "write_manifest"]

OK = "ok"
QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Record:
    """One row of a manifest.

    Attributes:
        id: the image's path inside the domain (``train/images/x.jpg``); of a quarantined row the source path.
        split: ``train``, ``val`` or ``test``; of a quarantined row what the source said, possibly nothing.
        image: path inside the domain; empty when quarantined.
        mask: path inside the domain; empty when quarantined.
        width: of the upright image in pixels, 0 when unknown.
        height: of the upright image in pixels, 0 when unknown.
        foreground_frac: share of mask pixels that are foreground.
        label: the class of the object, or of all objects of the image where they have one in common; else empty.
        instance: number of the object among those of its image, from 0; -1 where all objects are one sample.
        image_sha256: of the ingested image file.
        mask_sha256: of the ingested mask file.
        source_image: where the image came from, relative to the raw folder; empty when there was none.
        source_mask: where the mask or annotation came from, relative to the raw folder; empty when there was none.
        status: ``ok`` or ``quarantined``.
        reason: why it is quarantined.
    """

    id: str
    split: str
    image: str = ""
    mask: str = ""
    width: int = 0
    height: int = 0
    foreground_frac: float = 0.0
    label: str = ""
    instance: int = -1
    image_sha256: str = ""
    mask_sha256: str = ""
    source_image: str = ""
    source_mask: str = ""
    status: str = OK
    reason: str = ""


def write_manifest(path: Path, records: Iterable[Record]) -> None:
    """Write records sorted by status, split and id, atomically; their order on entry does not matter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
    schema = pa.schema([(field.name, types[str(field.type)]) for field in fields(Record)])
    # ``asdict`` copies every value with care, and takes longer than all the rest.
    rows = [vars(record) for record in sorted(records, key=lambda r: (r.status, r.split, r.id, r.source_mask))]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_manifest(path: Path) -> pd.DataFrame:
    """The rows of a manifest, in the order of the file.

    Raises:
        DataError: not a Parquet file, or without the columns of ``Record``.
    """
    import pyarrow as pa

    try:
        frame = read_frame(path)
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path}: cannot be read as Parquet: {exc}", hint="ingest the domain again") from exc
    missing = sorted({field.name for field in fields(Record)} - set(frame.columns))
    if missing:
        raise DataError(f"{path}: columns {missing} are missing", hint="ingest the domain again")
    return frame
