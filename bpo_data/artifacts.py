"""Finished work on disk: a folder per stage and settings, its manifest written last.

``runs/<stage>-<key>/`` holds Parquet files and ``manifest.json``. The key is taken from the stage's
name, version and settings and from the contents of its inputs, so equal work has one place. Work in
the making lives in ``<name>.partial``; a folder without ``.partial`` is whole.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import disk, stopping, streaming
from bpo_data.engines import Engine, Job, Part, SetUp, Tell
from bpo_data.engines.lines import Lines
from bpo_data.engines.local import Local
from bpo_data.errors import UserError, plain
from bpo_data.pulse import Pulse

MANIFEST = "manifest.json"
RESUMED = ".resume"
"""Folder of an artifact in the making for what an interrupted try leaves to the next."""
SCRATCH = ".scratch"
"""Folder of an artifact in the making for what goes with the try; a kill leaves it to be cleared by
the next."""
SEALS = ".seals"
"""Folder beside parts for their digests."""


class Artifact:
    """A finished folder. Every file is checked against its digest when it is read."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def rows(self) -> int:
        return int(self.manifest["rows"])

    @property
    def size(self) -> int:
        """Bytes of its files on disk."""
        return sum(int(file["bytes"]) for file in self.manifest["files"].values())

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.manifest["facts"])

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """The stage's table, whole, in its own order."""
        return pa.concat_tables(
            self.read(name, columns) for name in self.manifest["table"]
        ).combine_chunks()

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file of the folder. Raises UserError when it is not what was written."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.checked(name)).read(columns=columns)

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The stage's table in its own order, some rows at a time: memory holds no more. A file is
        checked before its first row. Raises UserError when it is not what was written."""
        for name in self.manifest["table"]:
            yield from streaming.batches(self.checked(name), columns)

    def checked(self, name: str) -> Path:
        """The path of a file whose bytes are still the ones in the manifest."""
        path = self.folder / name
        if not path.is_file():
            raise UserError(
                f"{path} is gone. Run the same command again; if it still says so, remove the "
                f"folder {self.folder}."
            )
        if disk.sha256(path) != self.manifest["files"][name]["sha256"]:
            raise UserError(
                f"{path} is not what was written (its sha256 differs from {MANIFEST}). Remove the "
                f"folder {self.folder} and run the same command again."
            )
        return path


@dataclass(frozen=True)
class Into:
    """Writes parts of a table in the schema's order into a folder that is open to writers."""

    folder: Path
    schema: pa.Schema
    makes: str

    def __call__(self, name: str, table: pa.Table) -> None:
        path = self.folder / name
        table = in_order(table, self.schema, self.makes)
        disk.write_parquet(table, path, seal_of(path), True)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within, parts can be written, by whatever process."""
        (self.folder / SEALS).mkdir(exist_ok=True)
        with disk.open_to_writers(self.folder):
            yield


def in_order(table: pa.Table, schema: pa.Schema, makes: str) -> pa.Table:
    """The schema's columns; a null where none may be is a bug."""
    table = table.select(schema.names).cast(schema)
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            raise AssertionError(f"{makes}.{column.name} has nulls")
    return table


def seal_of(path: Path) -> Path:
    """Where the digest of a part is kept while its artifact is in the making."""
    return path.parent / SEALS / f"{path.name}.sha256"


def cut(rows: pa.Table, name: str, part_rows: int) -> list[Part]:
    """The parts of a table, each under the name of its file; no rows are one part."""
    starts = range(0, max(rows.num_rows, 1), part_rows)
    return [
        (part_name(name, number), rows.slice(start, part_rows))
        for number, start in enumerate(starts)
    ]


def part_name(name: str, number: int) -> str:
    return f"{name}-{number:05d}.parquet"


class Draft:
    """An artifact in the making: what a stage's ``run`` writes to."""

    def __init__(
        self,
        folder: Path,
        makes: str,
        schema: pa.Schema,
        inputs: dict[str, Artifact],
        stage: str = "",
        engine: Engine | None = None,
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.makes = makes
        self.schema = schema
        self.inputs = inputs
        self.facts: dict[str, Any] = {}
        self.views: set[str] = set()
        self.table_files: list[str] = []
        self.engine = engine or Local()

    def write(self, table: pa.Table, name: str = "") -> None:
        """Write the stage's table, or the named file of it; columns must be the schema's."""
        name = name or f"{self.makes}.parquet"
        disk.write_parquet(in_order(table, self.schema, self.makes), self.folder / name)
        self.table_files.append(name)

    @contextmanager
    def writing(self, name: str = "") -> Iterator[Callable[[pa.Table], None]]:
        """Within, ``write`` table after table, of which memory holds one row group. Without any
        there is no file; one that is broken off is not there."""
        name = name or f"{self.makes}.parquet"
        with self.writing_beside(name, self.schema) as add:
            yield lambda table: add(in_order(table, self.schema, self.makes))
        if (self.folder / name).exists():
            self.table_files.append(name)

    @contextmanager
    def writing_beside(self, name: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
        """Like ``writing``, of tables of this schema for a file that is not part of the stage's
        table."""
        file = streaming.Growing(self.folder / name, schema)
        try:
            yield file.add
            file.close()
        except BaseException:
            file.drop()
            raise

    def write_log(self, table: pa.Table) -> None:
        """Like ``write``, for the log of a training: no digest covers it, since the line after an
        interruption is a mean over fewer updates. What later stages read is the model."""
        self.write(table)
        self.views.add(self.table_files[-1])

    def write_beside(self, table: pa.Table, name: str) -> None:
        """Write a Parquet file that is not part of the stage's table, such as rows set aside."""
        disk.write_parquet(table, self.folder / name)

    def map_parts(self, rows: pa.Table, set_up: SetUp, part_rows: int) -> None:
        """Write what a maker makes of each ``part_rows`` rows; finished parts are not remade.

        A maker sees the rows of its part and nothing that ran before, so where the cuts fall, what
        survived a crash and which engine makes the parts change nothing.
        """
        parts = cut(rows, self.makes, part_rows)
        write = Into(self.folder.absolute(), self.schema, self.makes)
        missing = [part for part in parts if not self.has(self.folder / part[0])]
        with self.bar(rows.num_rows, "rows") as progress, write.open():
            progress.update(rows.num_rows - sum(part.num_rows for _, part in missing))
            end = progress.n
            for done in self.engine.each(missing, set_up, write, progress):
                end += done  # a maker here may have told of rows within its part
                progress.update(end - progress.n)
        self.table_files += [file for file, _ in parts]

    def in_parts(self, job: Job, tell: Tell) -> pa.Table:
        """Like ``map_parts``, for what is not yet the stage's table: the rows made, in order.

        The parts wait under the job's name until the artifact is finished, so a crash loses none.
        """
        parts = (rows for _, rows in cut(job.rows, job.name, job.part_rows))
        return pa.concat_tables(self.made_of(parts, job.name, job.set_up, job.schema, tell))

    def made_of(
        self, parts: Iterable[pa.Table], name: str, set_up: SetUp, schema: pa.Schema, tell: Tell
    ) -> Iterator[pa.Table]:
        """Like ``in_parts``, for more rows than memory holds: what is made of each of the parts,
        which are taken one after the other and whose cuts must follow from the rows alone.

        All are made before the first is read.
        """
        folder = self.resumable(name)
        write = Into(folder.absolute(), schema, name)
        count = 0

        def path(number: int) -> Path:
            return folder / part_name(name, number)

        def missing() -> Iterator[Part]:
            nonlocal count
            for rows in parts:
                stopping.check()
                number, count = count, count + 1
                if self.has(path(number)):
                    tell(rows.num_rows)
                else:
                    yield path(number).name, rows

        with write.open():
            for done in self.engine.each(missing(), set_up, write, None):
                tell(done)
        return (disk.read_parquet(path(number)) for number in range(count))

    def lines(self, here: bool) -> Lines | None:
        """Lines to processes of the engine, for who asks servers; None where it has this alone."""
        return self.engine.lines(here)

    def has(self, path: Path) -> bool:
        """Whether a part is there as it was written; one that has changed since is named."""
        if not path.exists():
            return False
        whole = disk.sealed(path, seal_of(path))
        if not whole:
            logging.getLogger("bpo_data").warning(
                "%-10s %s is not what was written (its sha256 differs): it is made again",
                *(self.stage, path),
            )
        return whole

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """What has been written of the stage's table."""
        import pyarrow.parquet as pq

        return pa.concat_tables(
            pq.ParquetFile(self.folder / name).read(columns=columns) for name in self.table_files
        ).combine_chunks()

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The same, some rows at a time."""
        for name in self.table_files:
            yield from streaming.batches(self.folder / name, columns)

    def file(self, name: str) -> Path:
        """Where an extra file or folder of the artifact goes, such as ``model``."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def view(self, name: str) -> Path:
        """Like ``file``, for a page people look at: it may hold times, so no digest covers it."""
        self.views.add(name)
        return self.file(name)

    def resumable(self, name: str) -> Path:
        """A folder that an interruption leaves in place for the next try, gone when all is done."""
        path = self.folder / RESUMED / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for what memory does not hold; it goes, however the work ends."""
        path = self.folder / SCRATCH
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def say(self, text: str) -> None:
        """Tell the user one thing on stderr and in the report."""
        text = plain(text)
        self.facts.setdefault("notes", []).append(text)
        logging.getLogger("bpo_data").warning("%-10s %s", self.stage, text)

    def note(self, count: int, total: int, text: str) -> None:
        """Tell the user of rows that came to nothing: ``37 of 16,000 replies had no number``.

        ``text`` goes on after the counts; nothing is said of none. It is kept in the facts.
        """
        if count:
            share = f" ({100 * count / total:.3g} %)" if total else ""
            self.say(f"{count:,} of {total:,} {text}{share}")

    def bar(self, total: int, unit: str, *, shown: bool = True) -> Any:
        """A progress bar with rate and time left on stderr; where that is no terminal, a line a
        minute. One that is not ``shown`` says nothing."""
        from tqdm import tqdm

        if not shown:
            return tqdm(disable=True)
        if not sys.stderr.isatty():
            return Pulse(self.stage, total, unit)
        return tqdm(
            total=total,
            unit=f" {unit}",
            desc=self.makes,
            leave=False,
            dynamic_ncols=True,
        )
