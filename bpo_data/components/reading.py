"""Files to rows: Parquet, JSON lines, JSON arrays, CSV and TSV, streamed and never trusted."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from bpo_data.components.layouts import ROLES, Columns, Converter
from bpo_data.components.rows import Rejected, Row
from bpo_data.components.strict_json import Bad, Reason, array_elements, loads
from bpo_data.errors import UserError, nearest

__all__ = ["Columns", "FileRejected", "find_files", "read"]

MAX_LINE = 64 * 2**20
"""Bytes of one row; a longer line is rejected and never held whole."""
KEPT = 64 * 2**10
"""Bytes kept of a line that is too long."""
MAX_ARRAY = 2**30
"""Bytes of a JSON array, unpacked: the one layout that is held in memory."""
BATCH = 256
"""Parquet rows turned into Python objects at a time."""


class FileRejected(UserError):
    """A whole file that cannot be read; ``reason`` is one word of the closed set."""

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        super().__init__(f"{path.name}: {detail}")
        self.path = path
        self.reason: Reason = reason


@dataclass(frozen=True)
class Record:
    """A row as it stands in its file, before anyone asks what it means."""

    place: str
    """``:12`` (line, from 1) or ``#3`` (row, from 0)."""
    fields: dict[str, Any] | Bad
    raw: bytes | None = None
    """Its bytes; None in Parquet, where ``fields`` is all there is."""


def read(
    path: str, columns: Columns, roles: Mapping[str, str] | None = None
) -> Iterator[Row | Rejected]:
    """Every row of the files at ``path``, good or set aside, in the order of the files.

    ``roles`` maps other names of roles, such as {"human": "user"}. All files are looked through
    before the first row comes. Raises FileRejected for a file that cannot be read as a whole.
    """
    for alias, role in (roles or {}).items():
        if role not in ROLES:
            raise UserError(f"load.roles.{alias}={role}: a role is one of {', '.join(ROLES)}.")
    files = find_files(path)
    base = os.path.commonpath([file.parent for file in files])
    plans = [(file, os.path.relpath(file, base), *_look(file, columns, roles)) for file in files]
    return chain.from_iterable(_rows(*plan) for plan in plans)


def find_files(pattern: str) -> list[Path]:
    """The data files a path means: a file, the supported files of a folder, or a glob's, sorted."""
    path = Path(pattern)
    if path.is_file():
        if _suffix(path) not in KINDS:
            raise UserError(f"load.path={pattern}: {_unsupported()}")
        return [path]
    if path.is_dir():
        found = [one for one in path.iterdir() if not one.name.startswith(".")]
    else:
        found = [Path(one) for one in glob.glob(pattern, recursive=True)]
    files = sorted(one for one in found if one.is_file() and _suffix(one) in KINDS)
    if files:
        return files
    if found or path.is_dir():
        raise UserError(f"load.path={pattern}: no data file is there. {_unsupported()}")
    folder = path.parent
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    near = nearest(path.name, names) or (
        f" In {folder}: {', '.join(sorted(names)[:8])}."
        if names
        else f" There is no folder {folder} either."
    )
    raise UserError(f"load.path={pattern}: nothing is there.{near}")


def _suffix(path: Path) -> str:
    return (
        path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    )


def _unsupported() -> str:
    return f"Files are read by their ending: {', '.join(KINDS)}; the text kinds also with .gz."


def _look(
    path: Path, columns: Columns, roles: Mapping[str, str] | None
) -> tuple[Callable[[], Iterator[Record]], Converter]:
    """A first pass: which columns are there, and is the file sound to its end."""
    kind = _suffix(path)
    records = partial(KINDS[kind], path)
    keys: dict[str, None] = {}
    rows = 0
    if kind == ".parquet":
        with _parquet(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        keys = dict.fromkeys(schema.names)
        if len(keys) < len(schema.names):
            raise FileRejected(path, "duplicate_key", "two columns have the same name. Rename one.")
    else:
        for record in records():
            rows += 1
            if isinstance(record.fields, dict):
                keys.update(dict.fromkeys(record.fields))
    if not rows:
        raise FileRejected(path, "no_rows", "the file holds no rows. Leave it out.")
    if kind == ".json" and not keys:
        raise FileRejected(path, "invalid_json", "neither an array of objects nor JSON lines.")
    try:
        converter = Converter(keys, columns, roles or {}, textual=kind in (".csv", ".tsv"))
    except Bad as bad:
        raise FileRejected(path, bad.reason, bad.detail) from bad
    if kind == ".parquet":
        _check_types(path, schema, converter)
    return records, converter


def _rows(
    path: Path, name: str, records: Callable[[], Iterator[Record]], converter: Converter
) -> Iterator[Row | Rejected]:
    for record in records():
        origin = name + record.place
        try:
            if isinstance(record.fields, Bad):
                raise record.fields
            yield converter.row(record.fields, origin)
        except Bad as bad:
            raw = record.raw if record.raw is not None else _as_json(record.fields)
            yield Rejected(origin, bad.reason, bad.detail, raw)


def _as_json(fields: Any) -> bytes:
    text = json.dumps(
        fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str
    )
    return text.encode("utf-8", "surrogatepass")


def _check_types(path: Path, schema: pa.Schema, converter: Converter) -> None:
    for part in ("prompt", "chosen", "rejected", "response"):
        for name in converter.parts[part][:1]:
            if not _holds_text(schema.field(name).type):
                raise FileRejected(
                    path,
                    "wrong_type",
                    f"the column `{name}` is {schema.field(name).type}, not text or messages. "
                    f"Name another with load.columns.{part}=NAME, or none with `-`.",
                )


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_text(kind.value_type)
    tests = ("is_string", "is_large_string", "is_string_view", "is_struct", "is_null")
    return any(getattr(pa.types, test)(kind) for test in tests)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
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
            if len(set(header)) < len(header):
                raise FileRejected(
                    path, "duplicate_key", "two columns have the same name. Rename one."
                )
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
