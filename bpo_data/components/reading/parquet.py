"""Parquet files to records, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bpo_data.components.reading import bounds
from bpo_data.components.reading.bounds import Unpacked
from bpo_data.components.reading.faults import Bad, FileRejected
from bpo_data.components.reading.records import Record, check_names

BATCH = 256
"""Rows turned into Python objects at a time."""
AT_LEAST = 2**14
"""Rows of the row groups that one reader is made for: a reader for each of very small ones is slow.
"""


def parquet_shape(path: Path) -> tuple[pa.Schema, int]:
    """The columns of a Parquet file and its number of rows, from its footer."""
    with _parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    check_names(path, schema.names)
    return schema, rows


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # Pages are read as they are needed: a whole row group can be most of the file.
        with bounds.memory(bounds.AT_ONCE):
            file = pq.ParquetFile(path, buffer_size=2**20)
        with file:
            yield file
    except MemoryError as error:
        raise FileRejected(
            path,
            "too_large",
            f"{BATCH} of its rows take more than {bounds.AT_ONCE:,} bytes of memory. Leave out "
            f"those with texts that no model could read.",
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        raise FileRejected(
            path, "corrupt_parquet", f"not a whole Parquet file ({what}). Write or fetch it again."
        ) from error


def parquet_records(path: Path, gigabytes: float) -> Iterator[Record]:
    unpacked = Unpacked(path, gigabytes)
    number = 0
    with _parquet(path) as file:
        promised = file.metadata
        _check_promise(unpacked, promised)
        batches = _batches(file)
        while True:
            with bounds.memory(bounds.AT_ONCE):
                batch = next(batches, None)
            if batch is None:
                break
            for row in range(batch.num_rows):
                fields = _parquet_fields(batch, row)
                unpacked.add(bounds.EACH_ROW + bounds.weight(fields))
                yield Record(f"#{number}", fields)
                number += 1
    if number != promised.num_rows:
        raise FileRejected(
            path,
            "corrupt_parquet",
            f"not a whole Parquet file ({number:,} rows where {promised.num_rows:,} are promised). "
            f"Write or fetch it again.",
        )


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Some row groups at a time: one reader for all of them keeps what it has read of each."""
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= AT_LEAST or group == file.num_row_groups - 1:
            yield from file.iter_batches(BATCH, row_groups=groups, use_threads=False)
            groups, rows = [], 0


def _check_promise(unpacked: Unpacked, promised: pq.FileMetaData) -> None:
    """Raises FileRejected for what a file says of itself, before any of it is read."""
    groups = (promised.row_group(at).total_byte_size for at in range(promised.num_row_groups))
    unpacked.check(max(sum(groups), promised.num_rows * (bounds.EACH_ROW + bounds.EACH_VALUE)))


def _parquet_fields(batch: pa.RecordBatch, row: int) -> dict[str, Any] | Bad:
    try:
        return {name: batch.column(at)[row].as_py() for at, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError:
        return Bad("not_utf8", "a text of the row is not UTF-8")
