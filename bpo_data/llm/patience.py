"""Which failures pass, and how long to wait before asking again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpo_data.llm.failures import BUSY, NO_MONEY, Failed

if TYPE_CHECKING:
    from tenacity import RetryCallState

PASSING = frozenset({408, 409, BUSY})  # and every 5xx


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
        if not isinstance(error, Failed) or error.code == NO_MONEY:
            return False
        if error.status is None:
            return error.lost
        passing = error.status in PASSING or error.status >= 500
        return passing and (error.wait or 0) <= self.longest_asked

    def wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: what the server asks, or else our own doubling.

        Both carry chance, so that requests refused together do not come back together. After a
        429 it is 0: the gate of that server then waits for all.
        """
        failed = failed_in(state)
        if failed.busy:
            return 0.0
        own: float = min(self.longest_wait, self.first_wait * 2 ** (state.attempt_number - 1))
        if failed.wait is None:
            return own * random.uniform(0.5, 1)
        return failed.wait + own * random.uniform(0, 0.5)


def failed_in(state: RetryCallState) -> Failed:
    """Why the last attempt got no answer."""
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, Failed) else Failed()
