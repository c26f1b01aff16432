"""The folder of artifacts: what is finished, begun, held, needed; and how one is made."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from bpo_data import __version__, ages, disk
from bpo_data.artifacts import MANIFEST, RESUMED, SEALS, Artifact, Draft
from bpo_data.engines import Engine
from bpo_data.errors import UserError
from bpo_data.tables import canonical
from bpo_data.work import Work, difference

FORMAT = 1
LATEST = "latest"
"""Folder of links to what the last run ended with."""
PARTIAL = ".partial"
"""End of the name of a folder in the making."""
KEYS = {
    *("stage", "version", "settings", "inputs", "outside", "makes", "table", "rows", "facts"),
    *("digest", "files", "seconds", "made"),
}
"""What a manifest cannot lack."""
NAME = re.compile(r"(?P<stage>[a-z]+)-[0-9a-f]{12}")
"""Names of artifacts."""


class Shelf:
    """The folder of artifacts, with a note of when each was last needed and by whom it is made."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.locks = self.folder / ".locks"
        self.uses = self.folder / ".used"

    def find(self, work: Work) -> Artifact | None:
        """The finished artifact of this work; its files' presence and sizes are checked."""
        folder = self.folder / work.name
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_manifest(folder)
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
        if self.begun(work):
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
        """The manifests of all finished artifacts of a stage, but for those that cannot be read:
        whoever needs such a one hears of it from ``find``."""
        found = []
        for path in self.folder.glob(f"{stage}-*/{MANIFEST}"):
            if not path.parent.name.endswith(PARTIAL):
                with suppress(UserError):
                    found.append((path, read_manifest(path.parent)))
        return found

    @contextmanager
    def held(self, work: Work, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold this work for one process; a second run waits, told who holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        with open(self.locks / work.name, "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                waiting(lock.readline().strip() or "another process")
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n{ages.stamp()}")
            lock.flush()
            yield

    def holder(self, work: Work) -> str:
        """The process that holds this work now; empty when none does."""
        path = self.locks / work.name
        if not path.exists():
            return ""
        with open(path, encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.readline().strip() or "another process"
        return ""

    @contextmanager
    def alone(self, folder: Path) -> Iterator[bool]:
        """Hold a folder if no process makes or uses it; whether that came about."""
        path = self.locks / folder.name.removesuffix(PARTIAL)
        if not path.exists():  # nobody ever held it, and to look must write nothing
            yield True
            return
        with open(path, encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def in_use(self, folder: Path) -> bool:
        """Whether some process makes this folder or uses it."""
        with self.alone(folder) as free:
            return not free

    def begun(self, work: Work) -> bool:
        """Whether an interrupted try left something to go on from."""
        folder = self.folder / f"{work.name}{PARTIAL}"
        return any(path.is_file() for path in folder.rglob("*"))

    def folders(self, stages: Collection[str], end: str = PARTIAL) -> Iterator[Path]:
        """Every artifact of these stages, by name, finished or with this ``end`` of its name;
        nothing else that lies beside them, whatever it is called."""
        for path in sorted(self.folder.glob("*-*")):
            name = path.name.removesuffix(end)
            found = NAME.fullmatch(name)
            if not found or found["stage"] not in stages or path.is_symlink():
                continue
            if path.name != name or (path / MANIFEST).is_file():
                yield path

    def use(self, artifact: Artifact, command: str) -> IO[str] | None:
        """Note that a run needs this artifact, and which; as long as the file that is returned
        stays open, nobody removes it."""
        name = artifact.folder.name
        with suppress(OSError):  # a folder of finished work may be read-only: it serves as well
            for folder in (self.uses, self.locks):
                folder.mkdir(exist_ok=True)
            (self.uses / name).write_text(f"{command}\n{ages.stamp()}\n", encoding="utf-8")
            lock = open(self.locks / name, "a+", encoding="utf-8")  # noqa: SIM115  (the caller's)
            fcntl.flock(lock, fcntl.LOCK_SH)
            return lock
        return None

    def unused_for(self, folder: Path) -> float:
        """Seconds since a run last needed an artifact; of one in the making, since it last grew.
        A clock that jumps makes neither look older than it is (``ages``)."""
        notes = self.uses / folder.name, self.locks / folder.name.removesuffix(PARTIAL)
        signs = self.uses / folder.name, folder / MANIFEST, folder, *folder.glob("*")
        newest = max(path.stat().st_mtime for path in signs if path.exists())
        told = [note.read_text(encoding="utf-8") for note in notes if note.exists()]
        return min(ages.age(newest, words) for words in ("", *told))

    def forget(self, folder: Path) -> None:
        """Drop the note on an artifact that is gone. Its lock stays: somebody may wait for it."""
        (self.uses / folder.name).unlink(missing_ok=True)

    @staticmethod
    def size(folder: Path) -> int:
        """Bytes of all files of a folder."""
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())

    def make(
        self,
        work: Work,
        makes: str,
        schema: pa.Schema,
        inputs: dict[str, Artifact],
        run: Callable[[Draft], None],
        engine: Engine | None = None,
    ) -> Artifact:
        """Do the work in ``<name>.partial`` and finish it: manifest last, then the rename."""
        started = time.monotonic()
        partial = self.folder / f"{work.name}{PARTIAL}"
        partial.mkdir(parents=True, exist_ok=True)
        keep_parts(partial, makes)
        draft = Draft(partial, makes, schema, inputs, work.stage, engine)
        try:
            run(draft)
        except UserError:
            drop_checkpoints(partial / RESUMED)
            keep_parts(partial, makes)
            if not any(path.suffix == ".parquet" for path in partial.rglob("*")):
                shutil.rmtree(partial)
            raise
        shutil.rmtree(partial / RESUMED, ignore_errors=True)
        manifest = receipt(work, draft, time.monotonic() - started)
        disk.write_bytes(
            json.dumps(manifest, indent=1, ensure_ascii=False).encode(), partial / MANIFEST
        )
        os.rename(partial, self.folder / work.name)
        disk.sync_folder(self.folder)
        # Last, so that a kill while the parts are hashed costs none of them.
        shutil.rmtree(self.folder / work.name / SEALS, ignore_errors=True)
        return Artifact(self.folder / work.name, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What stands in an artifact's manifest. Raises UserError where that is no manifest, or one of
    a newer version."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        form = found["format"] if isinstance(found, dict) else None
        if not isinstance(form, int):
            raise ValueError("it names no format")
        lacking = sorted(KEYS - found.keys()) if form <= FORMAT else []
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Remove the folder {folder} and run the same command "
            f"again."
        ) from error
    if form > FORMAT:
        raise UserError(
            f"{path} has format {form}; this version knows {FORMAT}. Install a newer bpo_data, or "
            f"use another runtime.folder."
        )
    whole: dict[str, Any] = found
    return whole


def keep_parts(partial: Path, makes: str) -> None:
    """Clear what an interrupted try left, but for its finished parts and what it left to resume."""
    for path in partial.iterdir():
        if path.name in (RESUMED, SEALS):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif not (path.name.startswith(f"{makes}-") and path.suffix == ".parquet"):
            path.unlink()


def drop_checkpoints(resumed: Path) -> None:
    """Clear what a stage that failed for good left to go on from, but for finished parts."""
    for folder in [*resumed.glob("*"), resumed]:
        if folder.is_dir() and not any(folder.rglob("*.parquet")):
            shutil.rmtree(folder)


def receipt(work: Work, draft: Draft, seconds: float) -> dict[str, Any]:
    """The manifest: what was asked, what came out, and the digest later stages are keyed by."""
    import pyarrow.parquet as pq

    paths = sorted(path for path in draft.folder.rglob("*") if path.is_file())
    files = {}
    for path in paths:
        name = path.relative_to(draft.folder).as_posix()
        if name == MANIFEST or name.startswith(f"{SEALS}/"):
            continue
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
        "shown": work.shown,
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
