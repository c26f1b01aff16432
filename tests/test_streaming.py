"""Tables written and read a little at a time are those that are written and read whole."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data import disk, streaming
from bpo_data.artifacts import Draft
from bpo_data.streaming import Growing, batches, weights
from bpo_data.tables import MSG, columns, maybe

SCHEMA = columns(
    row_id=pa.string(), turns=MSG, points=maybe(pa.float32()), vector=pa.list_(pa.float32(), 3)
)


def rows(count: int, letters: int = 5) -> pa.Table:
    """Rows of every kind of column that stages write."""
    found = [
        {
            "row_id": f"{n:06d}",
            "turns": [{"role": "user", "content": "é" * (n % letters)}] * (n % 3),
            "points": None if n % 7 == 0 else n / 3,
            "vector": [n, 0, -n],
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(found, SCHEMA)


WHOLE = rows(9000)


def grown(path: Path, table: pa.Table, cuts: list[int]) -> Path:
    """A file that grew by the pieces between cuts."""
    file = Growing(path, table.schema)
    for start, end in pairwise([0, *sorted(cuts), table.num_rows]):
        file.add(table.slice(start, end - start))
    assert file.close()
    return path


@settings(max_examples=12, deadline=None)
@given(count=st.integers(0, 9000), cuts=st.lists(st.integers(0, 9000), max_size=8))
def test_a_file_that_grew_has_the_bytes_of_one_that_was_written_whole(
    tmp_path_factory, count, cuts
):
    folder = tmp_path_factory.mktemp("files")
    table = WHOLE.slice(0, count).combine_chunks()
    disk.write_parquet(table, folder / "whole.parquet")
    path = grown(folder / "grown.parquet", table, [min(cut, count) for cut in cuts])
    assert path.read_bytes() == (folder / "whole.parquet").read_bytes()
    assert sorted(one.name for one in folder.iterdir()) == ["grown.parquet", "whole.parquet"]


@pytest.mark.parametrize(("name", "bound"), [("GROUP_ROWS", 2048), ("GROUP_BYTES", 60_000)])
def test_row_groups_end_where_the_rows_say_and_not_where_tables_do(
    tmp_path, monkeypatch, name, bound
):
    monkeypatch.setattr(streaming, name, bound)
    some = [grown(tmp_path / f"{n}.parquet", WHOLE, list(range(0, 9000, n))) for n in (7, 1000)]
    assert some[0].read_bytes() == some[1].read_bytes()
    file = pq.ParquetFile(some[0])
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert len(groups) > 3
    if name == "GROUP_BYTES":
        ends = np.cumsum(groups)
        sizes = [weights(WHOLE.slice(end - n, n)) for end, n in zip(ends, groups, strict=True)]
        assert all(sum(own) >= bound > sum(own[:-1]) for own in sizes[:-1])
    assert file.read() == WHOLE
    if name == "GROUP_ROWS":
        assert groups == [2048] * 4 + [9000 - 4 * 2048]


def test_batches_are_the_table_in_its_order(tmp_path):
    path = grown(tmp_path / "a.parquet", WHOLE, [])
    found = list(batches(path, ["points", "row_id"]))
    assert pa.concat_tables(found) == WHOLE.select(["points", "row_id"])
    assert max(table.num_rows for table in found) == streaming.BATCH_ROWS


@given(start=st.integers(0, 50), count=st.integers(0, 50))
def test_the_weight_of_a_row_is_that_of_its_values(start, count):
    table = WHOLE.slice(start, count)
    by_hand = []
    for row in table.to_pylist():
        turns = sum(len((t["role"] + t["content"]).encode()) for t in row["turns"])
        by_hand.append(len(row["row_id"]) + 4 + 12 + turns)
    assert weights(table).tolist() == by_hand


def test_what_is_broken_off_leaves_no_file_and_what_gets_no_table_makes_none(tmp_path):
    draft = Draft(tmp_path, "rows", SCHEMA, {})
    with suppress(RuntimeError), draft.writing() as write:
        write(WHOLE)
        raise RuntimeError("crash")
    with draft.writing("other.parquet"):
        pass
    assert (list(tmp_path.iterdir()), draft.table_files) == ([], [])
    with draft.writing() as write:
        write(WHOLE.select(SCHEMA.names[::-1]))
    assert draft.table_files == ["rows.parquet"]
    assert pa.concat_tables(draft.batches()) == draft.read() == WHOLE


@pytest.mark.slow
def test_memory_of_writing_and_reading_does_not_grow_with_rows(tmp_path):
    """Arrow's own peak, over a table of vectors and long texts."""
    peaks = []
    for blocks in (20, 80):
        rng = np.random.default_rng(0)
        before = pa.total_allocated_bytes()
        file, most = None, 0
        for number in range(blocks):
            vector = pa.FixedSizeListArray.from_arrays(
                pa.array(rng.random(1024 * 1000, dtype=np.float32)), 1024
            )
            text = pa.array([f"{number} " * 1000] * 1000)
            table = pa.table({"vector": vector, "text": text})
            file = file or Growing(tmp_path / f"{blocks}.parquet", table.schema)
            file.add(table)
            most = max(most, pa.total_allocated_bytes() - before)
        assert file is not None
        file.close()
        del file, table
        for _ in batches(tmp_path / f"{blocks}.parquet"):
            most = max(most, pa.total_allocated_bytes() - before)
        peaks.append(most)
    assert peaks[1] < 1.1 * peaks[0], peaks
