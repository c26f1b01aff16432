"""Why a request got no answer, in plain facts that any process can be told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from bpo_data.llm.endpoint import redact
from bpo_data.llm.replies import shown

BUSY = 429
NO_MONEY = "insufficient_quota"  # the code of a 429 that no waiting ends
HOPELESS = frozenset({401, 403, 404})  # whoever asks gets the same: the run cannot work
NOT_CONNECTED = ("ConnectError", "ConnectTimeout", "ConnectionTimeoutError", "ClientConnector")
"""Beginnings of what the transports call a connection that did not come about."""


@dataclass(eq=False)
class Failed(Exception):
    """A request that got no answer. It can be pickled, as the errors of openai's client cannot."""

    words: str = ""
    """What the server said, or what went wrong on the way, on one line and without the key."""
    status: int | None = None
    """Of the server's refusal; None where it gave none."""
    code: str = ""
    wait: float | None = None
    """Seconds that the server's Retry-After asks for; None when it does not say."""
    lost: bool = False
    """The connection failed or ended, or time ran out."""
    nobody: bool = False
    """The connection failed, as against a server that is slow."""
    unsent: bool = False
    """No connection came about, so that nothing can have been asked."""

    @property
    def busy(self) -> bool:
        """Whether the server refused because it has too many requests."""
        return self.status == BUSY

    @property
    def hopeless(self) -> bool:
        """Whether every request would be answered like this one."""
        return self.status in HOPELESS or self.code == NO_MONEY


def failure_of(error: BaseException, key: str) -> Failed:
    """What an error of openai's client comes to, or one of ours."""
    import openai

    if isinstance(error, Failed):
        return error
    cause = refused_by(error)
    connection = isinstance(error, openai.APIConnectionError)
    # aiohttp calls a refused connection a time-out too.
    nobody = connection and (not isinstance(error, openai.APITimeoutError) or cause is not None)
    return Failed(
        words=words_of(error, cause if nobody else None, nobody, key),
        status=getattr(error, "status_code", None),
        code=redact(str(getattr(error, "code", None) or ""), key),
        wait=asked_wait(error),
        lost=connection or isinstance(error, TimeoutError),
        nobody=nobody,
        unsent=never_sent(error),
    )


def words_of(error: BaseException, cause: OSError | None, nobody: bool, key: str) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        body = body["message"]
    message = getattr(error, "message", "") or "Request timed out."
    if nobody:
        message = f"Connection error. {cause or ''}"
    return shown(redact(str(body or message), key))


def never_sent(error: BaseException) -> bool:
    """By what a transport says. aiohttp has the last word: openai's client takes whatever it calls
    an end of a connection, such as the server's, for one that did not come about."""
    found = False
    cause: BaseException | None = error
    while cause is not None:
        named = type(cause).__name__.startswith(NOT_CONNECTED)
        if type(cause).__module__.startswith("aiohttp."):
            return named
        found = found or named
        cause = cause.__cause__ or cause.__context__
    return found


def refused_by(error: BaseException) -> OSError | None:
    """What the operating system said of the connection."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def asked_wait(error: BaseException) -> float | None:
    """Seconds that the server's Retry-After asks for; None when it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    text = str(headers.get("retry-after", "")).strip()
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            # From the server's own time: the clock here may be wrong by hours.
            now = headers.get("date")
            told = parsedate_to_datetime(now).timestamp() if now else time.time()
            seconds = parsedate_to_datetime(text).timestamp() - told
    except (ValueError, TypeError):
        return None
    return max(0.0, seconds) if seconds == seconds else None
