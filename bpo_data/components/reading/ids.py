"""Ids of the source: each names one row, or one prompt whose responses come in several rows."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpo_data.components.reading.faults import Bad
from bpo_data.components.rows import Given
from bpo_data.tables import Message

HELD = 50_000
"""Ids that are held in memory before they go to disk: about 20 MB."""
CACHE = 2**14
"""KiB of the file that are held."""

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{cache};
CREATE TABLE prompt_of (name BLOB PRIMARY KEY, prompt BLOB) WITHOUT ROWID;
CREATE TABLE seen (name BLOB PRIMARY KEY) WITHOUT ROWID;
BEGIN;
"""


class Ids:
    """The ids of one file; in ``folder``, if there is one, once they are many."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.prompt_of: dict[bytes, bytes] = {}
        self.seen: set[bytes] = set()
        self.file: Path | None = None
        self.disk: sqlite3.Connection | None = None

    def add(
        self, label: str | None, prompt: Sequence[Message], given: Sequence[Given], one: bool
    ) -> None:
        """Remember an id. Raises Bad unless it names one row or, with ``one``, one prompt.

        ``one`` is a row of a single response: several of them may share their prompt's id.
        """
        if label is None:
            raise Bad("missing_id", "the row has no id, or an empty one; others have one")
        name, whole = _digest(label), _digest(repr(prompt))
        response = _digest(repr((label, given))) if one else name
        if (one and self._prompt(name) not in (None, whole)) or self._has(response):
            raise Bad("duplicate_id", f"the id {label!a:.80} stands on an earlier row too")
        self.prompt_of[name] = whole
        self.seen |= {response} if one else {response, name}
        if self.folder and len(self.prompt_of) + len(self.seen) > 2 * HELD:
            self._put_on_disk(self.folder)

    def close(self) -> None:
        """Leave nothing on disk."""
        if self.disk:
            self.disk.close()
            self.disk = None
        if self.file:
            self.file.unlink(missing_ok=True)

    def _prompt(self, name: bytes) -> bytes | None:
        """The prompt that an id has so far."""
        found = self.prompt_of.get(name)
        if found is None and self.disk:
            found = self._asked("SELECT prompt FROM prompt_of WHERE name = ?", name)
        return found

    def _has(self, name: bytes) -> bool:
        if name in self.seen:
            return True
        return bool(self.disk and self._asked("SELECT 1 FROM seen WHERE name = ?", name))

    def _asked(self, question: str, name: bytes) -> Any:
        assert self.disk
        with _faults(self.file):
            return (self.disk.execute(question, (name,)).fetchone() or (None,))[0]

    def _put_on_disk(self, folder: Path) -> None:
        if self.file is None:
            self.file = folder / f"ids-{secrets.token_hex(8)}"
        with _faults(self.file):
            if self.disk is None:
                self.disk = sqlite3.connect(self.file, isolation_level=None)
                self.disk.executescript(_TABLES.format(cache=CACHE))
            # In the order of the file, which then is gone through once.
            pairs = sorted(self.prompt_of.items())
            self.disk.executemany("INSERT OR REPLACE INTO prompt_of VALUES (?, ?)", pairs)
            names = ((name,) for name in sorted(self.seen))
            self.disk.executemany("INSERT INTO seen VALUES (?)", names)
        self.prompt_of, self.seen = {}, set()


@contextmanager
def _faults(file: Path | None) -> Iterator[None]:
    """A disk's faults as the system names them."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, f"{os.strerror(number)} ({error})", str(file)) from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
