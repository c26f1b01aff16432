"""The request store: every answer that was ever paid for, in one SQLite file.

A key stands for everything that reaches the server: address, payload and draw. So a changed byte
misses, and an equal request is never paid for twice, whichever stage or run asks. Nothing is ever
deleted. Keys to servers travel in headers, not in payloads, so none is written here.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from bpo_data import disk, faults
from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.replies import ANSWERED, Reply
from bpo_data.tables import canonical

SCHEMA = 2  # PRAGMA user_version; a newer store is refused, never rewritten
OURS = 0x62706F31  # PRAGMA application_id, "bpo1": tells our files from other SQLite files
PATIENCE = 60.0  # seconds that one process waits for another's write
SHORT = 0.05  # the same where an event loop would stand still meanwhile
PASSING = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL"})
AT_ONCE = 500  # keys looked up in one statement

COLUMNS = tuple(field.name for field in fields(Reply))
REPLIES = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, request TEXT NOT NULL,
    state TEXT NOT NULL, text TEXT NOT NULL, finish TEXT NOT NULL,
    usage_prompt INTEGER, usage_completion INTEGER,
    attempts INTEGER NOT NULL, detail TEXT NOT NULL,
    stored REAL NOT NULL -- seconds since 1970, UTC
)"""
BATCHES = (
    """CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, -- ours; the server has it in the batch's metadata
    endpoint TEXT NOT NULL, model TEXT NOT NULL, lines INTEGER NOT NULL,
    made REAL NOT NULL, -- seconds since 1970, UTC
    file TEXT, -- the server's name of its input; without one it was never asked to make the batch
    remote TEXT, -- the server's name of the batch, once that is known
    state TEXT NOT NULL -- "submitting", the server's word for it, or "over": no line is left
)""",
    """CREATE TABLE IF NOT EXISTS batch_lines (
    batch TEXT NOT NULL, place INTEGER NOT NULL, -- custom_id at the server
    key TEXT NOT NULL, request TEXT NOT NULL,
    attempt INTEGER NOT NULL, -- its row in attempts
    PRIMARY KEY (batch, place)
)""",
    "CREATE INDEX IF NOT EXISTS batch_lines_by_key ON batch_lines (key)",
)
"""A line stands here from before it is sent until its answer is stored: what is under way."""


def request_text(base_url: str, payload: Mapping[str, Any], draw: int) -> str:
    """Canonical JSON of all that an answer depends on; the store keeps it beside the answer."""
    return canonical({"draw": draw, "endpoint": base_url.rstrip("/"), "payload": payload})


def key_of(request: str) -> str:
    """64 hex digits: sha256 of a ``request_text``."""
    return hashlib.sha256(request.encode()).hexdigest()


class Unwritable(UserError):
    """The store cannot be written: the disk is full, or another program holds the file."""

    def __init__(self, path: Path, error: sqlite3.Error) -> None:
        super().__init__(
            f"runtime.store={path} cannot be written: {error}. Make room or free the file; the "
            f"replies so far are kept, and the same command goes on from them."
        )
        name = getattr(error, "sqlite_errorname", "").split("_")[:2]
        self.passing = "_".join(name) in PASSING
        """Whether waiting may help."""


class RequestStore:
    """Answers by key. Safe for several processes on one machine and for kill -9 at any moment.

    On a read-only file system what it holds is found all the same. Raises UserError when ``path``
    cannot be a store: another kind of file, a newer schema, a folder that cannot be written, or a
    file system on which SQLite cannot share (some networks').
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.read_only = self.path.is_file() and bool(disk.not_writable(self.path.parent))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = self._connect()
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            full = self.path.parent.is_dir() and faults.room(self.path.parent) < faults.LITTLE
            way_out = (
                "Its disk is full: make room, and run the same command again."
                if full
                else "Name a new file, or a request store, on a local disk."
            )
            raise UserError(
                f"runtime.store={self.path} cannot be used: {error}. {way_out}"
            ) from error

    def get_many(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The answers held for ``keys``; a key without one is left out."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Reply] = {}
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, {', '.join(COLUMNS)} FROM replies WHERE key IN ({marks})"
            found.update((key, Reply(*rest)) for key, *rest in self.connection.execute(query, some))
        return found

    def in_batches(self, keys: Iterable[str], gone: bool = True) -> list[tuple[str, str]]:
        """(key, batch) of each of ``keys`` that waits in a batch; ``gone``: also in those that the
        server was found not to have any more."""
        wanted = list(keys)
        found: list[tuple[str, str]] = []
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            query = (
                f"SELECT key, batch FROM batch_lines JOIN batches ON batches.id = batch "
                f"WHERE key IN ({marks}) AND (? OR batches.state != 'gone')"
            )
            found += self.connection.execute(query, (*some, gone))
        return found

    def put(self, key: str, request: str, reply: Reply) -> Reply:
        """Keep ``reply`` and return the answer to use; on disk by then, or with the transaction.

        The first answer to a key stays: when two processes asked at the same time, both go on
        with the one that came first. Raises ValueError for a reply that is no answer.
        """
        if reply.state not in ANSWERED:
            raise ValueError(f"a reply in state {reply.state} is no answer; it is not stored")
        row = (key, request, *astuple(reply), time.time())
        cursor = self.connection.execute(
            f"INSERT INTO replies (key, request, {', '.join(COLUMNS)}, stored) "
            f"VALUES ({','.join('?' * len(row))}) ON CONFLICT (key) DO NOTHING",
            row,
        )
        return reply if cursor.rowcount else self.get_many([key])[key]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside, or nothing. Raises Unwritable."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise Unwritable(self.path, error) from error

    def relax(self, relaxed: bool) -> None:
        """Whether commits return before they are on disk, for ``Syncer`` to bring them there, and
        another's write is not waited for. Either way they survive the death of this process."""
        self.connection.execute(f"PRAGMA synchronous = {'NORMAL' if relaxed else 'FULL'}")
        patience = SHORT if relaxed else PATIENCE
        self.connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")

    def __len__(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> RequestStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        """SQLite reads a write-ahead log with files beside it that it writes; where it can write
        none, it is told that nobody else does either."""
        if not self.read_only:
            return sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        log = self.path.with_name(f"{self.path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise sqlite3.OperationalError(
                f"{log} holds answers that cannot be brought in on a read-only file system; copy "
                f"both files elsewhere"
            )
        uri = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, isolation_level=None)

    def _prepare(self) -> None:
        """Write-ahead log, every commit flushed to disk, and our tables; several may race here."""
        if self._tables() and self._pragma("application_id") != OURS:
            raise sqlite3.DatabaseError("it is a SQLite file of another program")
        if self.read_only:
            self._known(self._pragma("user_version"))
            return
        self._share()
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self._known(self._pragma("user_version") if self._tables() else SCHEMA)
            # Schema 1 had the replies alone: what is missing is added, nothing is rewritten.
            for table in (REPLIES, *BATCHES, *ledger.TABLES):
                self.connection.execute(table)
            self.connection.execute(f"PRAGMA application_id = {OURS}")
            self.connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise

    def _known(self, schema: int) -> None:
        """Raises DatabaseError where another version wrote the file and it cannot be used so."""
        if schema > SCHEMA or (self.read_only and schema < SCHEMA):
            raise sqlite3.DatabaseError(f"its schema is {schema}, this version has {SCHEMA}")

    def _share(self) -> None:
        """Turn on the write-ahead log; SQLite's own waiting does not cover this one statement."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                mode = self.connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        if mode != "wal":
            raise sqlite3.OperationalError(f"no write-ahead log there (journal mode {mode})")

    def _tables(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])

    def _pragma(self, name: str) -> int:
        return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])
