"""What requests cost: an account of every attempt, in the file that holds the replies.

An attempt is written down before it is sent, at the most it may cost, and settled when its answer
is. So a cap holds for several processes that share a store, and for runs that were killed: what
was under way then stays on the account at its highest cost.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

TABLES = (
    """CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY,
    account TEXT NOT NULL, run TEXT NOT NULL, stage TEXT NOT NULL, model TEXT NOT NULL,
    endpoint TEXT NOT NULL, mode TEXT NOT NULL, requests INTEGER NOT NULL,
    sent REAL NOT NULL, -- seconds since 1970, UTC
    seconds REAL, -- until the answer was there; null while it is under way
    state TEXT, -- null while it is under way
    tokens_in INTEGER, tokens_out INTEGER,
    usd REAL, -- the most it may cost while that is not known better; null without a price
    sure INTEGER NOT NULL -- 1: usd is what the server's own count comes to
)""",
    "CREATE INDEX IF NOT EXISTS open_attempts ON attempts (account) WHERE state IS NULL",
    """CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, requests INTEGER NOT NULL, usd REAL NOT NULL
)""",
)


@dataclass(frozen=True)
class Caps:
    """What an account may come to; None where there is no end."""

    account: str = "all"
    usd: float | None = None
    requests: int | None = None


@dataclass(frozen=True)
class Attempt:
    """A request about to be sent, or several in one body."""

    stage: str
    model: str
    endpoint: str
    run: str
    """The process that sends it."""
    usd: float | None
    """The most it may cost; None where the price is not known."""
    mode: str = "live"
    requests: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt."""

    state: str
    seconds: float
    tokens_in: int | None = None
    tokens_out: int | None = None
    usd: float | None = None
    """As the server's own count says; None leaves it at the most it may have cost."""


@dataclass(frozen=True)
class Spent:
    """What an account has come to."""

    requests: int
    usd: float


def spent(connection: sqlite3.Connection, account: str) -> Spent:
    row = connection.execute(
        "SELECT requests, usd FROM accounts WHERE name = ?", (account,)
    ).fetchone()
    return Spent(int(row[0]), float(row[1])) if row else Spent(0, 0.0)


def open_attempt(connection: sqlite3.Connection, caps: Caps, attempt: Attempt) -> int | None:
    """The attempt's number on the account; None when it would go past a cap."""
    so_far = spent(connection, caps.account)
    if caps.requests is not None and so_far.requests + attempt.requests > caps.requests:
        return None
    # An epsilon, since sums of cents in binary end a hair above the cap they fill.
    if caps.usd is not None and so_far.usd + (attempt.usd or 0.0) > caps.usd + 1e-9:
        return None
    connection.execute(
        "INSERT INTO accounts (name, requests, usd) VALUES (?, ?, ?) ON CONFLICT (name) "
        "DO UPDATE SET requests = requests + excluded.requests, usd = usd + excluded.usd",
        (caps.account, attempt.requests, attempt.usd or 0.0),
    )
    cursor = connection.execute(
        "INSERT INTO attempts (account, run, stage, model, endpoint, mode, requests, sent, usd, "
        "sure) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        (
            *(caps.account, attempt.run, attempt.stage, attempt.model, attempt.endpoint),
            *(attempt.mode, attempt.requests, time.time(), attempt.usd),
        ),
    )
    return cursor.lastrowid


def withdraw_attempt(connection: sqlite3.Connection, number: int) -> None:
    """Take an attempt off the account that was not sent after all."""
    account, requests, usd = connection.execute(
        "SELECT account, requests, usd FROM attempts WHERE id = ?", (number,)
    ).fetchone()
    connection.execute("DELETE FROM attempts WHERE id = ?", (number,))
    connection.execute(
        "UPDATE accounts SET requests = requests - ?, usd = max(0, usd - ?) WHERE name = ?",
        (requests, usd or 0.0, account),
    )


def close_attempt(connection: sqlite3.Connection, number: int, outcome: Outcome) -> None:
    """Settle an attempt: the account keeps what it cost in place of what it might have."""
    account, reserved = connection.execute(
        "SELECT account, usd FROM attempts WHERE id = ?", (number,)
    ).fetchone()
    usd = reserved if outcome.usd is None else outcome.usd
    connection.execute(
        "UPDATE attempts SET sent = ?, state = ?, seconds = ?, tokens_in = ?, tokens_out = ?, "
        "usd = ?, sure = ? WHERE id = ?",
        (
            time.time() - outcome.seconds,  # it may have waited for a limit since it was opened
            *(outcome.state, outcome.seconds, outcome.tokens_in, outcome.tokens_out),
            *(usd, int(outcome.usd is not None), number),
        ),
    )
    if usd is not None and reserved is not None:
        connection.execute(
            "UPDATE accounts SET usd = max(0, usd + ?) WHERE name = ?", (usd - reserved, account)
        )


def take_over(connection: sqlite3.Connection, number: int, run: str) -> None:
    """Put an attempt on another run's bill: the one that sent it ended before its answer came."""
    connection.execute("UPDATE attempts SET run = ? WHERE id = ?", (run, number))


def under_way(connection: sqlite3.Connection, account: str, run: str, since: float) -> bool:
    """Whether other runs have live attempts on the account that were sent after ``since`` and are
    not settled. Those of a time to come were left by a run before the clock was set back."""
    row = connection.execute(
        "SELECT 1 FROM attempts WHERE state IS NULL AND account = ? AND run != ? "
        "AND sent BETWEEN ? AND ? AND mode = 'live' LIMIT 1",
        (account, run, since, time.time()),
    ).fetchone()
    return row is not None


@dataclass(frozen=True)
class Bill:
    """What the attempts of one stage and model came to."""

    stage: str
    model: str
    mode: str
    requests: int
    failed: int
    """Of these, requests that got no answer, and those under way when a run was killed."""
    tokens_in: int
    tokens_out: int
    usd: float | None
    """None where no price is known."""
    unsure: int
    """Requests counted at the most they may have cost, since no server said what they did."""
    waiting: int
    """Requests in batches that are not collected."""
    seconds: float
    """Between the first request sent and the last answer."""


def left_over(connection: sqlite3.Connection, account: str, run: str) -> Spent:
    """Attempts that runs which were killed left unsettled, at the most they may have cost."""
    row = connection.execute(
        "SELECT coalesce(sum(requests), 0), coalesce(sum(usd), 0.0) FROM attempts "
        "WHERE state IS NULL AND account = ? AND run != ? AND mode = 'live'",
        (account, run),
    ).fetchone()
    return Spent(int(row[0]), float(row[1]))


def bills(connection: sqlite3.Connection, run: str, answered: frozenset[str]) -> list[Bill]:
    """What a run's attempts came to, a bill for each stage and model, in the order they began."""
    marks = ",".join("?" * len(answered))
    rows = connection.execute(
        f"""SELECT stage, model, mode, sum(requests),
            sum(CASE WHEN state IN ({marks}) OR (state IS NULL AND mode = 'batch') THEN 0
                ELSE requests END),
            sum(coalesce(tokens_in, 0)), sum(coalesce(tokens_out, 0)),
            CASE WHEN count(usd) = count(*) THEN sum(usd) END,
            sum(CASE WHEN usd > 0 AND NOT sure THEN requests ELSE 0 END),
            sum(CASE WHEN state IS NULL AND mode = 'batch' THEN requests ELSE 0 END),
            max(sent + coalesce(seconds, 0)) - min(sent)
        FROM attempts WHERE run = ? GROUP BY stage, model, mode ORDER BY min(id)""",
        (*sorted(answered), run),
    )
    return [Bill(*row) for row in rows]
