"""Files that are whole or not there: written beside, brought to disk, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa


def write_parquet(table: pa.Table, path: Path, seal: Path | None = None) -> None:
    """Write beside and rename, so that a file that exists is whole; its digest goes to ``seal``,
    which is there before the file is."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(path.name + ".writing")
    pq.write_table(table, writing, compression="zstd")
    sync_file(writing)
    if seal:
        write_bytes(sha256(writing).encode(), seal)
    os.rename(writing, path)


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
    writing = path.with_name(path.name + ".writing")
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
