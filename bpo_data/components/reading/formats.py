"""Parquet, JSON lines, JSON arrays, CSV and TSV to records: streamed, and never trusted."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from bpo_data.components.reading.faults import Bad, FileRejected
from bpo_data.components.reading.strict_json import array_elements, loads

MAX_LINE = 64 * 2**20
"""Bytes of one row; a longer line is rejected and never held whole."""
KEPT = 64 * 2**10
"""Bytes kept of a line that is too long."""
MAX_ARRAY = 2**30
"""Bytes of a JSON array, unpacked: the one layout that is held in memory."""
BATCH = 256
"""Parquet rows turned into Python objects at a time."""


@dataclass(frozen=True)
class Record:
    """A row as it stands in its file, before anyone asks what it means."""

    place: str
    """``:12`` (line, from 1) or ``#3`` (row, from 0)."""
    fields: dict[str, Any] | Bad
    raw: bytes | None = None
    """Its bytes; None in Parquet, where ``fields`` is all there is."""


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise FileRejected(path, "duplicate_key", "two columns have the same name. Rename one.")


def parquet_shape(path: Path) -> tuple[pa.Schema, int]:
    """The columns of a Parquet file and its number of rows, from its footer."""
    with _parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    _check_names(path, schema.names)
    return schema, rows


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        raise FileRejected(
            path, "corrupt_parquet", f"not a whole Parquet file ({what}). Write or fetch it again."
        ) from error


def _parquet_records(path: Path) -> Iterator[Record]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(BATCH):
            for row in range(batch.num_rows):
                yield Record(f"#{number}", _parquet_fields(batch, row))
                number += 1


def _parquet_fields(batch: pa.RecordBatch, row: int) -> dict[str, Any] | Bad:
    try:
        return {name: batch.column(at)[row].as_py() for at, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError:
        return Bad("not_utf8", "a text of the row is not UTF-8")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileRejected(
            path, "corrupt_gzip", f"not a whole gzip file ({error}). Write or fetch it again."
        ) from error
    except OSError as error:
        raise FileRejected(path, "unreadable", f"cannot be read ({error.strerror}).") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number from 1, bytes with their line end, and whether the line was too long to keep."""
    with _opened(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE):
            number += 1
            if number == 1:
                line = _without_mark(path, line)
            cut = len(line) >= MAX_LINE and not line.endswith(b"\n")
            while cut and (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, line[:KEPT] if cut else line, cut


def _without_mark(path: Path, line: bytes) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]:
        raise FileRejected(path, "not_utf8", "the text is UTF-16 or UTF-32. Convert it to UTF-8.")
    return line.removeprefix(b"\xef\xbb\xbf")


def _parsed(line: int, raw: bytes) -> Record:
    try:
        fields = loads(raw)
        if not isinstance(fields, dict):
            raise Bad("not_an_object", "the row is JSON, but no object with columns")
        return Record(f":{line}", fields, raw)
    except Bad as bad:
        return Record(f":{line}", bad, raw)


def _too_long(line: int, raw: bytes) -> Record:
    bad = Bad("too_long", f"the row is over {MAX_LINE:,} bytes; its first {len(raw):,} are kept")
    return Record(f":{line}", bad, raw)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line, cut in _lines(path):
        if cut:
            yield _too_long(number, line)
        elif line.strip():
            yield _parsed(number, line.rstrip(b"\r\n"))


def _json(path: Path) -> Iterator[Record]:
    """An array of objects if the first sign is ``[``, else JSON lines."""
    first = next((line for _, line, _ in _lines(path) if line.strip()), b"")
    if not first.lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    with _opened(path) as stream:
        data = _without_mark(path, stream.read(MAX_ARRAY + 1))
    if len(data) > MAX_ARRAY:
        raise FileRejected(path, "too_long", f"an array over {MAX_ARRAY:,} bytes. Use JSON lines.")
    for line, raw, ended in array_elements(data):
        if len(raw) > MAX_LINE:
            yield _too_long(line, raw[:KEPT])
        elif ended:
            yield _parsed(line, raw)
        else:
            bad = Bad("invalid_json", "the array ends too early, or something follows it")
            yield Record(f":{line}", bad, raw)


def _csv(path: Path, delimiter: str) -> Iterator[Record]:
    """Rows by the header's names; a row's place is the line it begins on."""
    csv.field_size_limit(MAX_LINE)
    held: list[bytes] = []

    def texts() -> Iterator[str]:
        for number, line, cut in _lines(path):
            if cut:
                raise csv.Error(f"line {number} is over {MAX_LINE:,} bytes")
            held.append(line)
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        held.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise FileRejected(
                path,
                "malformed_csv",
                f"the row that begins on line {start} cannot be read ({error}). Mend its quotes.",
            ) from error
        if cells is None:
            return
        if cells and not header:
            header = cells
            _check_names(path, header)
        elif cells:
            raw = b"".join(held).rstrip(b"\r\n")
            yield Record(f":{start}", _cells(header, cells, raw), raw)


def _cells(header: list[str], cells: list[str], raw: bytes) -> dict[str, Any] | Bad:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad("not_utf8", f"byte {error.start + 1} of the row is not UTF-8")
    if len(cells) != len(header):
        return Bad("wrong_field_count", f"{len(cells)} fields, but the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


KINDS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".parquet": _parquet_records,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
}
