"""Parquet files written and read a little at a time, so that memory does not grow with rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import disk

GROUP_ROWS = 65_536
"""Rows of a row group of a file that grows."""
GROUP_BYTES = 2**25
"""Bytes of values after which one ends before that."""
BLOCK_ROWS = 1024
"""Row groups end behind a multiple of so many rows; as many are read at a time."""
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
        self.rest = schema.empty_table()
        """What does not fill a block yet."""
        self.rows = self.bytes = self.written = 0

    def add(self, table: pa.Table) -> None:
        """Rows that come next, in the file's schema; a table without rows makes a file as well."""
        import pyarrow.parquet as pq

        if not self.file:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.writing, self.schema, compression="zstd")
        rows = pa.concat_tables([self.rest, table])
        whole = rows.num_rows - rows.num_rows % BLOCK_ROWS
        for start in range(0, whole, BLOCK_ROWS):
            block = rows.slice(start, BLOCK_ROWS).combine_chunks()
            self.group.append(block)
            self.rows += BLOCK_ROWS
            self.bytes += sum(weight(chunk) for column in block.columns for chunk in column.chunks)
            if self.rows >= GROUP_ROWS or self.bytes >= GROUP_BYTES:
                self.flush()
        self.rest = rows.slice(whole).combine_chunks()

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
        self.group.append(self.rest)
        if self.rows + self.rest.num_rows or not self.written:
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


def weight(array: pa.Array) -> int:
    """Bytes of an array's values; unlike ``nbytes`` the same however the array came about."""
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_struct(kind):
        return sum(weight(one) for one in array.flatten())
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return weight(array.flatten())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pc.sum(pc.binary_length(array)).as_py() or 0
    return int(len(array) * kind.bit_width // 8)


def batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A file's rows, ``BLOCK_ROWS`` at a time. Memory holds these and a buffer of each column,
    however large the row groups are: without a buffer a column of one is read whole."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        for batch in file.iter_batches(BLOCK_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])
