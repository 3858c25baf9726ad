"""Reading Parquet files, each small and whole, by one thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["read_frame", "read_table"]


def read_table(path: Path) -> pa.Table:
    """The table of a file.

    Raises:
        OSError: the file is missing or cannot be read.
        pyarrow.ArrowException: it is no Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    # Read whole first: a path given to pyarrow would also take folders and partition names apart. And by this thread:
    # pyarrow's pools can abort or hang the process when it ends (apache/arrow issues 34314 and 50482).
    return parquet.read_table(pa.BufferReader(path.read_bytes()), use_threads=False, pre_buffer=False)


def read_frame(path: Path) -> pd.DataFrame:
    """The same as a frame."""
    frame: pd.DataFrame = read_table(path).to_pandas(use_threads=False)
    return frame
