"""Finished work on disk: a folder per stage and settings, its manifest written last.

``runs/<stage>-<key>/`` holds Parquet files and ``manifest.json``. The key is taken from the stage's
name, version and settings and from the contents of its inputs, so equal work has one place. Work in
the making lives in ``<name>.partial``; a folder without ``.partial`` is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from bpo_data import __version__, disk, stopping
from bpo_data.errors import UserError
from bpo_data.tables import canonical
from bpo_data.work import Work, difference
from bpo_data.workers import Make, Workers

MANIFEST = "manifest.json"
FORMAT = 1
RESUMED = ".resume"
"""Folder of an artifact in the making for what an interrupted try leaves to the next."""


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

    def checked(self, name: str) -> Path:
        """The path of a file whose bytes are still the ones in the manifest."""
        path = self.folder / name
        if not path.is_file() or disk.sha256(path) != self.manifest["files"][name]["sha256"]:
            raise UserError(
                f"{path} is missing or not what was written (its sha256 differs from "
                f"{MANIFEST}). Remove the folder {self.folder} and run the same command again."
            )
        return path


def _write_part(folder: Path, schema: pa.Schema, makes: str, name: str, table: pa.Table) -> None:
    """Write a file of a stage's table in the schema's order; a null where none may be is a bug."""
    table = table.select(schema.names).cast(schema)
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            raise AssertionError(f"{makes}.{column.name} has nulls")
    disk.write_parquet(table, folder / name)


class Draft:
    """An artifact in the making: what a stage's ``run`` writes to."""

    def __init__(
        self,
        folder: Path,
        makes: str,
        schema: pa.Schema,
        inputs: dict[str, Artifact],
        stage: str = "",
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.makes = makes
        self.schema = schema
        self.inputs = inputs
        self.facts: dict[str, Any] = {}
        self.views: set[str] = set()
        self.table_files: list[str] = []
        self.progress: Any = None

    def write(self, table: pa.Table, name: str = "") -> None:
        """Write the stage's table, or the named file of it; columns must be the schema's."""
        name = name or f"{self.makes}.parquet"
        _write_part(self.folder, self.schema, self.makes, name, table)
        self.table_files.append(name)

    def write_log(self, table: pa.Table) -> None:
        """Like ``write``, for the log of a training: no digest covers it, since the line after an
        interruption is a mean over fewer updates. What later stages read is the model."""
        self.write(table)
        self.views.add(self.table_files[-1])

    def write_beside(self, table: pa.Table, name: str) -> None:
        """Write a Parquet file that is not part of the stage's table, such as rows set aside."""
        disk.write_parquet(table, self.folder / name)

    def map_parts(
        self,
        rows: pa.Table,
        make: Make,
        part_rows: int,
        workers: Workers | None = None,
    ) -> None:
        """Write ``make(part)`` for each ``part_rows`` rows; parts found finished are not remade.

        ``make`` sees its rows and nothing that ran before, so where the cuts fall and what
        survived a crash change nothing, nor does making the parts in ``workers`` instead. It may
        tell of rows done within the part through ``progress``.
        """
        starts = range(0, max(rows.num_rows, 1), part_rows)
        parts = [
            (f"{self.makes}-{number:05d}.parquet", rows.slice(start, part_rows))
            for number, start in enumerate(starts)
        ]
        missing = [part for part in parts if not (self.folder / part[0]).exists()]
        write = partial(_write_part, self.folder, self.schema, self.makes)
        with self.bar(rows.num_rows, "rows") as self.progress:
            self.progress.update(rows.num_rows - sum(part.num_rows for _, part in missing))
            if workers and workers.count > 1 and len(missing) > 1:
                for done in workers.each(missing, write):
                    self.progress.update(done)
                missing = []
            end = self.progress.n
            for name, part in missing:
                stopping.check()
                write(name, make(part))
                end += part.num_rows
                self.progress.update(end - self.progress.n)
        self.table_files += [name for name, _ in parts]

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """What has been written of the stage's table."""
        import pyarrow.parquet as pq

        return pa.concat_tables(
            pq.ParquetFile(self.folder / name).read(columns=columns) for name in self.table_files
        ).combine_chunks()

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

    def say(self, text: str) -> None:
        """Tell the user one thing on stderr and in the report."""
        self.facts.setdefault("notes", []).append(text)
        logging.getLogger("bpo_data").warning("%-10s %s", self.stage, text)

    def note(self, count: int, total: int, text: str) -> None:
        """Tell the user of rows that came to nothing: ``37 of 16,000 replies had no number``.

        ``text`` goes on after the counts; nothing is said of none. It is kept in the facts.
        """
        if count:
            share = f" ({100 * count / total:.3g} %)" if total else ""
            self.say(f"{count:,} of {total:,} {text}{share}")

    def bar(self, total: int, unit: str) -> Any:
        """A progress bar with rate and time left on stderr; silent when that is no terminal."""
        from tqdm import tqdm

        return tqdm(
            total=total,
            unit=f" {unit}",
            desc=self.makes,
            leave=False,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )


class Shelf:
    """The folder of artifacts."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def find(self, work: Work) -> Artifact | None:
        """The finished artifact of this work; its files' presence and sizes are checked."""
        folder = self.folder / work.name
        if not (folder / MANIFEST).is_file():
            return None
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{folder / MANIFEST} has format {manifest['format']}; this version knows "
                f"{FORMAT}. Install a newer bpo_data, or use another runtime.folder."
            )
        for name, written in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != written["bytes"]:
                raise UserError(
                    f"{path} is missing or cut short. Remove the folder {folder} and run the "
                    f"same command again."
                )
        return Artifact(folder, manifest)

    def why(self, work: Work) -> str:
        """Why this work has to run: what differs from the last artifact of the stage."""
        if (self.folder / f"{work.name}.partial").exists():
            return "going on after an interruption"
        like = self.nearest(work)
        if like is None:
            return "first time"
        found = difference(like.manifest, work)
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return ", ".join(found[:3]) + more or "not made yet"

    def nearest(self, work: Work) -> Artifact | None:
        """The finished artifact of the stage most like this work, the newest of equals."""
        found = [
            (len(difference(manifest, work)), -path.stat().st_mtime_ns, path, manifest)
            for path, manifest in self.manifests(work.stage)
        ]
        if not found:
            return None
        _, _, path, manifest = min(found, key=lambda one: one[:2])
        return Artifact(path.parent, manifest)

    def manifests(self, stage: str) -> list[tuple[Path, dict[str, Any]]]:
        """The manifests of all finished artifacts of a stage."""
        return [
            (path, json.loads(path.read_text(encoding="utf-8")))
            for path in self.folder.glob(f"{stage}-*/{MANIFEST}")
            if not path.parent.name.endswith(".partial")
        ]

    @contextmanager
    def held(self, work: Work, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold this work for one process; a second run waits, told who holds it."""
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / work.name, "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                waiting(lock.read().strip() or "another process")
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    def make(
        self,
        work: Work,
        makes: str,
        schema: pa.Schema,
        inputs: dict[str, Artifact],
        run: Callable[[Draft], None],
    ) -> Artifact:
        """Do the work in ``<name>.partial`` and finish it: manifest last, then the rename."""
        started = time.monotonic()
        partial = self.folder / f"{work.name}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        keep_parts(partial, makes)
        draft = Draft(partial, makes, schema, inputs, work.stage)
        try:
            run(draft)
        except UserError:
            shutil.rmtree(partial / RESUMED, ignore_errors=True)
            keep_parts(partial, makes)
            if not any(partial.iterdir()):
                partial.rmdir()
            raise
        shutil.rmtree(partial / RESUMED, ignore_errors=True)
        manifest = receipt(work, draft, time.monotonic() - started)
        disk.write_bytes(
            json.dumps(manifest, indent=1, ensure_ascii=False).encode(), partial / MANIFEST
        )
        os.rename(partial, self.folder / work.name)
        disk.sync_folder(self.folder)
        return Artifact(self.folder / work.name, manifest)


def keep_parts(partial: Path, makes: str) -> None:
    """Clear what an interrupted try left, but for its finished parts and what it left to resume."""
    for path in partial.iterdir():
        if path.name == RESUMED:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif not (path.name.startswith(f"{makes}-") and path.suffix == ".parquet"):
            path.unlink()


def receipt(work: Work, draft: Draft, seconds: float) -> dict[str, Any]:
    """The manifest: what was asked, what came out, and the digest later stages are keyed by."""
    import pyarrow.parquet as pq

    paths = sorted(path for path in draft.folder.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        name = path.relative_to(draft.folder).as_posix()
        if name != MANIFEST:
            disk.sync_file(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
    content = {name: file["sha256"] for name, file in files.items() if name not in draft.views}
    # A pointer to a model says nothing of its weights: what lies outside counts as content too.
    content |= {f"outside:{name}": digest for name, digest in work.outside.items()}
    rows = sum(pq.ParquetFile(draft.folder / name).metadata.num_rows for name in draft.table_files)
    return {
        "format": FORMAT,
        "stage": work.stage,
        "version": work.version,
        "settings": work.settings,
        "inputs": work.inputs,
        "outside": work.outside,
        "makes": draft.makes,
        "table": draft.table_files,
        "rows": rows,
        "facts": draft.facts,
        "digest": hashlib.sha256(canonical(content).encode()).hexdigest(),
        "files": files,
        "seconds": round(seconds, 3),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bpo_data": __version__,
    }
