"""JSON lines, JSON arrays, CSV and TSV to records: streamed, and never trusted."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from bpo_data.components.reading import bounds
from bpo_data.components.reading.bounds import MAX_ARRAY, MAX_LINE, MAX_VALUES, Unpacked
from bpo_data.components.reading.faults import Bad, FileRejected
from bpo_data.components.reading.parquet import parquet_records
from bpo_data.components.reading.records import Record, check_names
from bpo_data.components.reading.strict_json import array_elements, loads

KEPT = 64 * 2**10
"""Bytes kept of a line that is too long."""


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path, "rb") if _is_packed(path) else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileRejected(
            path, "corrupt_gzip", f"not a whole gzip file ({error}). Write or fetch it again."
        ) from error
    except OSError as error:
        raise FileRejected(path, "unreadable", f"cannot be read ({error.strerror}).") from error


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _lines(path: Path, gigabytes: float) -> Iterator[tuple[int, bytes, bool]]:
    """Number from 1, bytes with their line end, and whether the line was too long to keep."""
    unpacked = Unpacked(path, gigabytes) if _is_packed(path) else None
    with _opened(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE):
            number += 1
            if number == 1:
                line = _without_mark(path, line)
            if unpacked:
                unpacked.add(bounds.EACH_ROW + len(line))
            cut = len(line) >= MAX_LINE and not line.endswith(b"\n")
            while cut and (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                if unpacked:
                    unpacked.add(len(rest))
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


def _json_lines(path: Path, gigabytes: float) -> Iterator[Record]:
    for number, line, cut in _lines(path, gigabytes):
        if cut:
            yield _too_long(number, line)
        elif line.strip():
            yield _parsed(number, line.rstrip(b"\r\n"))


def _json(path: Path, gigabytes: float) -> Iterator[Record]:
    """An array of objects if the first sign is ``[``, else JSON lines."""
    first = next((line for _, line, _ in _lines(path, gigabytes) if line.strip()), b"")
    if not first.lstrip().startswith(b"["):
        yield from _json_lines(path, gigabytes)
        return
    unpacked = Unpacked(path, gigabytes)
    most = min(MAX_ARRAY, unpacked.most) if _is_packed(path) else MAX_ARRAY
    with _opened(path) as stream:
        data = _without_mark(path, stream.read(most + 1))
    if _is_packed(path):
        unpacked.add(len(data))
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


def _csv(path: Path, gigabytes: float, delimiter: str) -> Iterator[Record]:
    """Rows by the header's names; a row's place is the line it begins on."""
    csv.field_size_limit(MAX_LINE)
    held: list[bytes] = []

    def texts() -> Iterator[str]:
        size = marks = 0
        for number, line, cut in _lines(path, gigabytes):
            if not held:
                size = marks = 0
            held.append(line)
            size, marks = size + len(line), marks + line.count(delimiter.encode())
            if cut or size > MAX_LINE:
                raise csv.Error(f"up to line {number} it has over {MAX_LINE:,} bytes")
            if marks > MAX_VALUES:
                raise csv.Error(f"up to line {number} it has over {MAX_VALUES:,} fields")
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
            check_names(path, header)
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


KINDS: dict[str, Callable[[Path, float], Iterator[Record]]] = {
    ".parquet": parquet_records,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
}
"""Ending -> the records of a file, which may unpack to so many gigabytes (0: see ``bounds``)."""
