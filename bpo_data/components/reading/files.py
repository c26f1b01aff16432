"""A path to rows: find its files, look each through once, then convert record by record."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data.components.reading.bounds import MAX_COLUMNS
from bpo_data.components.reading.columns import Columns
from bpo_data.components.reading.faults import Bad, FileRejected
from bpo_data.components.reading.formats import KINDS
from bpo_data.components.reading.layouts import Converter
from bpo_data.components.reading.messages import ROLES
from bpo_data.components.reading.parquet import parquet_shape
from bpo_data.components.reading.records import Record
from bpo_data.components.rows import Rejected, Row
from bpo_data.errors import UserError, nearest


def read(
    path: str,
    columns: Columns,
    roles: Mapping[str, str] | None = None,
    skip_bad_files: bool = False,
    seen: set[str] | None = None,
    unpacked_gb: float = 0,
    scratch: Path | None = None,
) -> Iterator[Row | Rejected]:
    """Every row of the files at ``path``, good or set aside, in the order of the files.

    ``roles`` maps other names of roles, such as {"human": "user"}. All files are looked through
    before the first row comes. Raises FileRejected for a file that cannot be read as a whole, or,
    with ``skip_bad_files``, sets the file aside as one rejected row and goes on. The names of all
    columns are added to ``seen``. A packed file may come to ``unpacked_gb`` gigabytes; with 0 to
    what ``bounds`` says. Ids that are many wait in the folder ``scratch``, else in memory.
    """
    files = find_files(path)
    base = os.path.commonpath([file.parent for file in files])
    plans: list[Iterator[Row | Rejected]] = []
    for file in files:
        name = os.path.relpath(file, base)
        try:
            records, converter, keys = _look(file, columns, roles, unpacked_gb, scratch)
            plans.append(_rows(name, records, converter, skip_bad_files))
            if seen is not None:
                seen.update(keys)
        except FileRejected as bad:
            if not skip_bad_files:
                raise
            plans.append(iter([Rejected(name, bad.reason, str(bad), b"")]))
    return chain.from_iterable(plans)


def role_problems(roles: Mapping[str, str]) -> Iterator[str]:
    """One line for each alias that points to no role."""
    for alias, role in roles.items():
        if role not in ROLES:
            yield f"load.options.roles.{alias}={role}: a role is one of {', '.join(ROLES)}."


def column_problems(columns: Mapping[str, str]) -> Iterator[str]:
    """One line for each part that no column can play."""
    known = [field.name for field in fields(Columns)]
    for part in columns:
        if part not in known:
            yield (
                f"load.columns.{part} is no column we use.{nearest(part, known)} "
                f"There are {', '.join(known)}."
            )


def find_files(pattern: str) -> list[Path]:
    """The data files a path means: a file, the supported files of a folder, or a glob's, sorted.

    Raises UserError where there is none, or one of a folder's or a glob's lies elsewhere.
    """
    path = Path(pattern)
    if path.is_file():
        if _suffix(path) not in KINDS:
            raise UserError(f"load.path={pattern}: {_unsupported()}")
        _check_letters([path])
        return [path]
    if path.is_dir():
        found = [one for one in path.iterdir() if not one.name.startswith(".")]
    else:
        found = [Path(one) for one in glob.glob(pattern, recursive=True)]
    files = sorted(one for one in found if one.is_file() and _suffix(one) in KINDS)
    if files:
        _check_links(pattern, files)
        _check_letters(files)
        return files
    if found or path.is_dir():
        raise UserError(f"load.path={pattern}: no data file is there. {_unsupported()}")
    folder = path.parent
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    data = sorted(name for name in names if _suffix(folder / name) in KINDS)
    near = nearest(path.name, names) or (
        f" In {folder}: {', '.join(data[:8])}."
        if data
        else f" There is no data file in {folder}. {_unsupported()}"
        if folder.is_dir()
        else f" There is no folder {folder} either."
    )
    raise UserError(f"load.path={pattern}: nothing is there.{near}")


def _check_links(pattern: str, files: Collection[Path]) -> None:
    """Raises UserError for a file that lies elsewhere than where the user has pointed to.

    A folder of others may link to anything that this user can read. Only the hub's cache, whose
    ``snapshots`` are links into ``blobs``, is known to do so for good reason.
    """
    path = Path(pattern)
    while not path.is_dir():
        path = path.parent
    allowed = [path.resolve()]
    for one in (allowed[0], *allowed[0].parents):
        if one.parent.name == "snapshots":
            allowed.append(one.parent.parent / "blobs")
    for file in files:
        target = file.resolve()
        if not any(target.is_relative_to(one) for one in allowed):
            raise UserError(
                f"load.path={pattern}: {file} is a link to {target}, outside of {path}. If you "
                f"mean that file, name it or its folder in load.path."
            )


def _check_letters(files: Collection[Path]) -> None:
    """Raises UserError for a name that cannot be written down beside the rows of its file."""
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"load.path: the name of {os.fsencode(file)!r} is not UTF-8. Rename the file."
            ) from None


def _suffix(path: Path) -> str:
    return (
        path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    )


def _unsupported() -> str:
    return f"Files are read by their ending: {', '.join(KINDS)}; the text kinds also with .gz."


def _look(
    path: Path,
    columns: Columns,
    roles: Mapping[str, str] | None,
    unpacked_gb: float,
    scratch: Path | None,
) -> tuple[Callable[[], Iterator[Record]], Converter, Collection[str]]:
    """A first pass: which columns are there, and is the file sound to its end."""
    kind = _suffix(path)
    records = partial(KINDS[kind], path, unpacked_gb)
    keys: dict[str, None] = {}
    rows = 0
    if kind == ".parquet":
        schema, rows = parquet_shape(path)
        keys = dict.fromkeys(schema.names)
    else:
        for record in records():
            rows += 1
            if isinstance(record.fields, dict):
                keys.update(dict.fromkeys(record.fields))
            if len(keys) > MAX_COLUMNS:
                break
    if len(keys) > MAX_COLUMNS:
        raise FileRejected(path, "too_large", f"its rows name over {MAX_COLUMNS:,} columns.")
    if not rows:
        raise FileRejected(path, "no_rows", "the file holds no rows. Leave it out.")
    if kind == ".json" and not keys:
        raise FileRejected(path, "invalid_json", "neither an array of objects nor JSON lines.")
    try:
        textual = kind in (".csv", ".tsv")
        converter = Converter(keys, columns, roles or {}, textual, scratch)
    except Bad as bad:
        raise FileRejected(path, bad.reason, bad.detail) from bad
    if kind == ".parquet":
        _check_types(path, schema, converter)
    return records, converter, keys


def _rows(
    name: str, records: Callable[[], Iterator[Record]], converter: Converter, skip: bool
) -> Iterator[Row | Rejected]:
    """With ``skip`` a file that breaks off is one more rejected row, after those before it."""
    try:
        with closing(converter.ids):
            for record in records():
                yield _row(name + record.place, record, converter)
    except FileRejected as bad:
        if not skip:
            raise
        yield Rejected(name, bad.reason, str(bad), b"")


def _row(origin: str, record: Record, converter: Converter) -> Row | Rejected:
    try:
        if isinstance(record.fields, Bad):
            raise record.fields
        return converter.row(record.fields, origin)
    except Bad as bad:
        raw = record.raw if record.raw is not None else as_json(record.fields)
        return Rejected(origin, bad.reason, bad.detail, raw)


def as_json(record: Any) -> bytes:
    """A record whose bytes are not at hand, as canonical JSON."""
    text = json.dumps(
        record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str
    )
    return text.encode("utf-8", "surrogatepass")


def _check_types(path: Path, schema: pa.Schema, converter: Converter) -> None:
    for part in ("prompt", "chosen", "rejected", "response"):
        for name in converter.cells.parts[part][:1]:
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
