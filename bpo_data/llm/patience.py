"""Which failures pass, and how long to wait before asking again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity import RetryCallState

BUSY = 429
PASSING = frozenset({408, 409, BUSY})  # and every 5xx
NO_MONEY = "insufficient_quota"  # the code of a 429 that no waiting ends


@dataclass(frozen=True)
class Patience:
    """How often and how long to try; it changes speed, never an answer."""

    attempts: int = 8
    """Times a request is sent before it counts as failed; with the waits below, over 1 minute.
    Refusals for too many requests (429) do not count: they end with ``refused_for``."""

    first_wait: float = 1.0
    """Seconds before the second attempt; doubled each time, then shortened by up to half."""

    longest_wait: float = 60.0
    """Seconds; where the doubling ends."""

    longest_asked: float = 600.0
    """Seconds; a server that asks to wait longer (Retry-After) is not waited for in this run."""

    refused_for: float = 900.0
    """Seconds without a single answer after which a server that refuses (429) is given up."""

    timeout: float = 300.0
    """Seconds for one attempt, from the first byte sent to the last received."""

    drain: float = 300.0
    """Seconds that answers under way are waited for when a run is stopped. A second Ctrl-C, or a
    scheduler's SIGKILL, ends it sooner; what came by then is kept."""

    def worth_another(self, error: BaseException) -> bool:
        """Whether the same request may well succeed later."""
        import openai

        if isinstance(error, TimeoutError | openai.APIConnectionError):
            return True
        if not isinstance(error, openai.APIStatusError) or error.code == NO_MONEY:
            return False
        passing = error.status_code in PASSING or error.status_code >= 500
        return passing and (asked_wait(error) or 0) <= self.longest_asked

    def wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: what the server asks, or else our own doubling.

        Both carry chance, so that requests refused together do not come back together. After a
        429 it is 0: the gate of that server then waits for all.
        """
        error = state.outcome.exception() if state.outcome else None
        if is_busy(error):
            return 0.0
        own: float = min(self.longest_wait, self.first_wait * 2 ** (state.attempt_number - 1))
        asked = asked_wait(error) if error else None
        if asked is None:
            return own * random.uniform(0.5, 1)
        return asked + own * random.uniform(0, 0.5)


def is_busy(error: BaseException | None) -> bool:
    """Whether the server refused because it has too many requests."""
    return getattr(error, "status_code", None) == BUSY


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
