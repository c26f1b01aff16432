"""Files that are small and come to more than a machine holds are refused within a bound."""

from __future__ import annotations

import gzip
import io
import re
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bpo_data.components.reading import (
    Columns,
    FileRejected,
    bounds,
    formats,
    read,
    strict_json,
)
from bpo_data.components.rows import Row
from bpo_data.components.sources import Files
from bpo_data.errors import UserError

PEAK = Path("/proc/self/clear_refs")
ROW = b'{"prompt": "a"}\n'
MIB = 2**20


def peak() -> int:
    """Bytes of memory that this process held at most since ``PEAK`` was told to begin anew."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def read_within(path: Path, memory: int, seconds: float = 20) -> Any:
    """The rows, or why the file is refused; fails where that takes more than the bounds."""
    try:
        PEAK.write_text("5")
    except OSError:
        pytest.skip("this machine does not say how much memory was used at most")
    before, began = peak(), time.process_time()
    try:
        found: Any = list(read(str(path), Columns()))
    except FileRejected as error:
        found = error
    assert peak() - before < memory, f"{(peak() - before) / MIB:,.0f} MiB"
    assert time.process_time() - began < seconds
    return found


def packed(head: bytes, block: bytes, times: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as stream:
        stream.write(head)
        for _ in range(times):
            stream.write(block)
    return file.getvalue()


@pytest.fixture
def small(monkeypatch):
    """Lower bounds, so that reaching them takes a moment."""
    monkeypatch.setattr(bounds, "LEAST", bounds.LEAST // 16)
    for module in (formats, strict_json):
        monkeypatch.setattr(module, "MAX_VALUES", 10_000)


@pytest.mark.parametrize(
    ("name", "head", "block"),
    [
        ("zeros.jsonl.gz", b"", b"0" * MIB),
        ("rows.jsonl.gz", ROW, b"{}\n" * 2**16),
        ("blank.jsonl.gz", ROW, b"\n" * MIB),
        ("array.json.gz", b"[", b" " * MIB),
        ("field.csv.gz", b'prompt\n"', b"a" * MIB),
    ],
)
def test_a_packed_file_is_refused_where_it_comes_to_too_much(tmp_path, small, name, head, block):
    path = tmp_path / name
    path.write_bytes(packed(head, block, 40))
    assert path.stat().st_size < bounds.LEAST / bounds.TIMES
    refused = read_within(path, 100 * MIB)
    assert refused.reason == "too_large"
    assert f"unpack to more than {bounds.LEAST:,}" in str(refused)
    assert "load.options.unpacked_gb" in str(refused)


def test_the_setting_raises_the_bound_and_a_larger_file_has_a_larger_one(tmp_path, small):
    path = tmp_path / "rows.jsonl.gz"
    rows = b"".join(b'{"prompt": "%d %s"}\n' % (row, b"x" * MIB) for row in range(20))
    path.write_bytes(gzip.compress(rows, 1))
    with pytest.raises(UserError, match=r"load\.options\.unpacked_gb"):
        list(Files(str(path), {}).rows())
    assert len(list(Files(str(path), {}, unpacked_gb=0.03).rows())) == 20
    (problem,) = Files(str(path), {}, unpacked_gb=-1).problems()
    assert problem.startswith("load.options.unpacked_gb=-1")
    path.write_bytes(b"x" * 10**6)
    assert bounds.Unpacked(path, 0).most == 10**8


def written(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, **{"compression": "zstd", "store_schema": False, **options})
    return path


def of_dictionary(path: Path) -> Path:
    """256 rows of one text of 16 MiB that the file holds once."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), ["x" * 16 * MIB])
    return written(path, pa.table({"prompt": text}), dictionary_pagesize_limit=2**30)


def of_prefixes(path: Path) -> Path:
    """256 rows, each of which repeats the 16 MiB before it by their number alone."""
    table = pa.table({"prompt": ["x" * 16 * MIB] * 256})
    coding = {"prompt": "DELTA_BYTE_ARRAY"}
    return written(path, table, use_dictionary=False, column_encoding=coding)


def of_nulls(path: Path) -> Path:
    return written(path, pa.table({"prompt": pa.nulls(10**7, pa.string())}), row_group_size=10**7)


def of_one_page(path: Path) -> Path:
    return written(path, pa.table({"prompt": ["x" * 20 * MIB]}), use_dictionary=False)


def nested(path: Path) -> Path:
    kind, value = pa.string(), "a"
    for _ in range(500):
        kind, value = pa.list_(kind), [value]
    return written(path, pa.table({"prompt": pa.array([value], kind)}))


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_dictionary, of_prefixes])
def test_rows_that_share_their_bytes_are_not_all_written_out(tmp_path, make):
    refuse(make(tmp_path / "rows.parquet"), "too_large", 3 * 2**30)


@pytest.mark.parametrize("make", [of_nulls, of_one_page, nested])
def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, small, make):
    reason = "corrupt_parquet" if make is nested else "too_large"
    refuse(make(tmp_path / "rows.parquet"), reason, 100 * MIB)


def refuse(path: Path, reason: str, memory: int) -> None:
    assert path.stat().st_size < MIB
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert read_within(path, memory).reason == reason
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("promised", [b"\x16\x08", b"\x16\x05", b"\x16\x00"])
def test_a_parquet_file_that_promises_other_rows_than_it_has_is_refused(tmp_path, promised):
    path = written(tmp_path / "rows.parquet", pa.table({"prompt": ["a", "b", "c"]}))
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    start = len(content) - 8 - length
    # Thrift's compact protocol: field 3 after field 2, a number in zigzag: 6 for 3 rows.
    assert content.count(b"\x16\x06", start) >= 2
    path.write_bytes(content[:start] + content[start:].replace(b"\x16\x06", promised))
    with pytest.raises(FileRejected) as refused:
        list(read(str(path), Columns()))
    assert refused.value.reason in ("corrupt_parquet", "no_rows")


LINES: dict[str, tuple[bytes, str]] = {
    "deep.jsonl": (ROW + b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "too_deep"),
    "deep.json": (b"[" + ROW + b"," + b"[" * 100_000 + b"]" * 100_000 + b"]", "too_deep"),
    "lists.jsonl": (ROW + b'{"prompt": [' + b"[]," * 11_000 + b"0]}\n", "too_large"),
    "keys.jsonl": (
        ROW + b"{" + b",".join(b'"%d":0' % at for at in range(11_000)) + b"}\n",
        "too_large",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_row_of_absurd_shape_is_set_aside_and_the_others_are_read(tmp_path, small, name):
    content, reason = LINES[name]
    (tmp_path / name).write_bytes(content)
    first, second = read_within(tmp_path / name, 100 * MIB)
    assert isinstance(first, Row)
    assert second.reason == reason


def test_a_long_text_full_of_commas_and_brackets_is_a_text(tmp_path, small):
    text = "[{,}], " * 4_000
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "{text}"}}\n')
    (row,) = read_within(tmp_path / "a.jsonl", 300 * MIB)
    assert row.prompt[0]["content"] == text


def test_a_table_of_absurd_width_is_refused(tmp_path, small, monkeypatch):
    path = tmp_path / "a.csv"
    for content in (b"prompt" + b"," * 11_000 + b"\n", b"prompt\n" + b'"\n",' * 11_000):
        path.write_bytes(content)
        refused = read_within(path, 100 * MIB)
        assert refused.reason == "malformed_csv"
        assert "over 10,000 fields" in str(refused)
    monkeypatch.setattr("bpo_data.components.reading.files.MAX_COLUMNS", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "a", "{row}": 0}}\n' for row in range(2000)))
    assert "over 1,000 columns" in str(read_within(path, 100 * MIB))


def test_a_quoted_field_over_many_lines_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("bpo_data.components.reading.formats.MAX_LINE", MIB)
    (tmp_path / "a.csv").write_bytes(b'prompt\n"' + b"a\n" * MIB)
    assert "over 1,048,576 bytes" in str(read_within(tmp_path / "a.csv", 50 * MIB))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "tail"),
    [
        ("line.jsonl", b'{"prompt": "', b'"}\n{"prompt": "b"}\n'),
        ("field.csv", b'prompt\n"', b'"\n'),
        ("array.json", b'["            ', b'"]'),
    ],
)
def test_a_line_or_a_field_of_a_gigabyte_stays_out_of_memory(tmp_path, name, head, tail):
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        file.seek(2**30)  # a hole: it reads as zeros and takes no room
        file.write(tail)
    found = read_within(tmp_path / name, 2500 * MIB if name == "array.json" else 500 * MIB, 120)
    if name == "line.jsonl":
        long, fine = found
        assert (long.reason, fine.prompt[0]["content"]) == ("too_long", "b")
    else:
        assert found.reason in ("malformed_csv", "too_long")
