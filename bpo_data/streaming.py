"""Parquet files written and read a little at a time, so that memory does not grow with rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bpo_data import disk

if TYPE_CHECKING:
    import numpy as np

GROUP_ROWS = 65_536
"""Rows of a row group of a file that grows."""
GROUP_BYTES = 2**25
"""Bytes of values after which one ends before that, with the row that brings it there."""
BATCH_ROWS = 1024
"""Rows that are read at a time."""
BUFFER = 2**20
"""Bytes of each column that are read at once."""


class Growing:
    """A Parquet file written table after table, whole or not there. Memory holds one row group.

    Where row groups end depends on the rows alone and not on the tables they come in, so the bytes
    of the file do neither. One of a single row group is as ``disk.write_parquet`` writes it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.writing = path.with_name(path.name + ".writing")
        self.file: Any = None
        self.group: list[pa.Table] = []
        self.rows = self.bytes = self.written = 0

    def add(self, table: pa.Table) -> None:
        """Rows that come next, in the file's schema; a table without rows makes a file as well."""
        import numpy as np
        import pyarrow.parquet as pq

        if not self.file:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.writing, self.schema, compression="zstd")
        ends = np.concatenate([[0], np.cumsum(weights(table))])
        start = 0
        while start < table.num_rows:
            full = int(np.searchsorted(ends, ends[start] + GROUP_BYTES - self.bytes))
            stop = min(table.num_rows, start + GROUP_ROWS - self.rows, full)
            self.group.append(table.slice(start, stop - start))
            self.rows += stop - start
            self.bytes += int(ends[stop] - ends[start])
            if self.rows >= GROUP_ROWS or self.bytes >= GROUP_BYTES:
                self.flush()
            start = stop

    def flush(self) -> None:
        """End the row group."""
        group = pa.concat_tables([self.schema.empty_table(), *self.group]).combine_chunks()
        self.file.write_table(group, row_group_size=max(group.num_rows, 1))
        self.written += group.num_rows
        self.group, self.rows, self.bytes = [], 0, 0

    def close(self) -> bool:
        """Bring it to its place; whether there is a file: there is none if nothing was added."""
        if not self.file:
            return False
        if self.rows or not self.written:
            self.flush()
        self.file.close()
        disk.sync_file(self.writing)
        os.rename(self.writing, self.path)
        return True

    def drop(self) -> None:
        """Leave nothing of it behind, which makes room for the next try."""
        with suppress(OSError):
            if self.file:
                self.file.close()
        with suppress(OSError):
            self.writing.unlink(missing_ok=True)


def weights(table: pa.Table) -> np.ndarray:
    """Bytes of the values of each row, int64 (n,); unlike ``nbytes`` the same however the table
    came about."""
    import numpy as np

    found = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        start = 0
        for chunk in column.chunks:
            found[start : start + len(chunk)] += weights_of(chunk)
            start += len(chunk)
    return found


def weights_of(values: pa.Array) -> np.ndarray:
    """Bytes of each value, int64 (n,): its letters, its items' own, or the width of its type."""
    import numpy as np
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_struct(kind):
        return sum(map(weights_of, values.flatten()), np.zeros(len(values), np.int64))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(counts, dtype=np.int64)
        upto = np.concatenate([[0], np.cumsum(weights_of(values.flatten()))])
        return np.asarray(upto[ends] - upto[ends - counts])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
    return np.full(len(values), kind.bit_width // 8, np.int64)


def batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A file's rows, ``BATCH_ROWS`` at a time. Memory holds these and a buffer of each column,
    however large the row groups are: without a buffer a column of one is read whole."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        for group in range(file.num_row_groups):  # one reader for all keeps some of each
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                yield pa.Table.from_batches([batch])
