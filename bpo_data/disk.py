"""Files that are whole or not there: written beside, brought to disk, renamed."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

WRITING = ".writing"
"""Folder for files that several processes are writing, beside where they go."""


def write_parquet(
    table: pa.Table, path: Path, seal: Path | None = None, shared: bool = False
) -> None:
    """Write beside and rename, so that a file that exists is whole; its digest goes to ``seal``,
    which is there before the file is.

    ``shared`` works within ``open_to_writers`` alone, for a part that two processes may be writing
    at once: one that was given up for lost, and its successor. Parts alone are sealed.
    """
    import pyarrow.parquet as pq

    beside = path.parent / WRITING / f"{path.name}.{secrets.token_hex(8)}"
    if not shared:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".writing")
    try:
        pq.write_table(table, beside, compression="zstd")
        sync_file(beside)
        if seal:
            _put(sha256(beside).encode(), beside.with_name(f"{beside.name}.seal"), seal)
        os.rename(beside, path)
    except OSError:
        with suppress(OSError):  # room for the next try
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def open_to_writers(folder: Path) -> Iterator[None]:
    """Within, parts can be written. From the end on that fails, wherever a writer that was given up
    for lost stands: it cannot add a file to what is finished, nor make the folder again."""
    place = folder / WRITING
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield
    finally:
        closed = folder / f"{WRITING}-{secrets.token_hex(8)}"
        with suppress(OSError):
            os.rename(place, closed)  # first, so that nothing can be added while it is emptied
        shutil.rmtree(closed, ignore_errors=True)


def token_in(folder: Path) -> Path:
    """A new file by which another machine can tell that it sees this very folder, which is open to
    writers."""
    path = folder / WRITING / f"token-{secrets.token_hex(8)}"
    path.touch()
    return path


def read_parquet(path: Path) -> pa.Table:
    """A whole file; no column more is made of the name of a folder."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read()


def sealed(path: Path, seal: Path) -> bool:
    """Whether a file is what was written when it was sealed."""
    return seal.is_file() and seal.read_bytes() == sha256(path).encode()


def write_bytes(content: bytes, path: Path) -> None:
    """Write beside, bring to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _put(content, path.with_name(path.name + ".writing"), path)


def _put(content: bytes, writing: Path, path: Path) -> None:
    with open(writing, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(writing, path)


def not_writable(folder: Path) -> str:
    """Why files cannot be put in a folder that is there or would be made; empty when they can."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} does not let you"


def sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: str) -> dict[str, str]:
    """Name -> sha256 of each file of a local folder; empty where there is no such folder."""
    if not folder or not Path(folder).is_dir():
        return {}
    return {path.name: sha256(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}
