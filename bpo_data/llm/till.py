"""Who pays for requests: what each attempt may cost is set aside, and settled when it is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from bpo_data.budget import RUN
from bpo_data.errors import UserError
from bpo_data.llm import ledger
from bpo_data.llm.failures import Failed
from bpo_data.llm.prices import Price, Prices
from bpo_data.llm.replies import Reply
from bpo_data.llm.requests import Parcel
from bpo_data.llm.store import RequestStore, Unwritable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

POLL = 0.1  # seconds between two tries to write
STORE_PATIENCE = 600.0  # seconds that a full disk or another's lock is waited for
OTHERS = 300.0  # seconds after which an attempt of another run that is not settled is a dead run's


@dataclass(frozen=True)
class Account:
    """Who pays for requests, and what they cost."""

    stage: str = "augment"
    caps: ledger.Caps = field(default_factory=ledger.Caps)
    prices: Prices = field(default_factory=Prices)
    run: str = RUN

    def price_of(self, model: str) -> Price | None:
        """The model's price; None where it is not known and no cap in dollars needs it."""
        price = self.prices.of(model)
        if price is None and self.caps.usd is not None:
            raise UserError(
                f"budget.prices={self.prices.path} has no price of {model}, so "
                f"budget.usd={self.caps.usd:g} cannot be kept. Add the model to the file."
            )
        return price


class OutOfBudget(Exception):
    """A cap of the budget leaves no room for another request."""


class Till:
    """One run's side of the account, and its one way to write to the store."""

    def __init__(self, store: RequestStore, account: Account, base_url: str) -> None:
        self.store, self.account, self.base_url = store, account, base_url
        self.opened = 0
        """Attempts on the account that are not settled yet."""
        self.settled = asyncio.Event()
        self.out_of_budget = False

    async def written(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do a job in a transaction; waits while the disk is full or another holds the file, with
        whatever has come in held in memory. At most once: a job that fails leaves no trace."""
        until, told = time.monotonic() + STORE_PATIENCE, False
        while True:
            try:
                with self.store.transaction() as connection:
                    return job(connection)
            except Unwritable as error:
                if not error.passing or time.monotonic() > until:
                    raise
                if not told:
                    log.warning("%s Waiting with what came in.", error)
                told = True
            await asyncio.sleep(POLL)

    async def reserve(self, parcel: Parcel) -> int:
        """Put an attempt on the account; waits while those under way hold what may come free.

        Raises OutOfBudget, and UserError where a cap in dollars lacks the model's price.
        """
        price = self.account.price_of(parcel.model)
        attempt = ledger.Attempt(
            stage=self.account.stage,
            model=parcel.model,
            endpoint=self.base_url,
            run=self.account.run,
            usd=price.usd(*parcel.tokens) if price else None,
        )
        while not self.out_of_budget:
            self.settled.clear()
            number = await self.written(
                lambda connection: ledger.open_attempt(connection, self.account.caps, attempt)
            )
            if number is not None:
                self.opened += 1
                return number
            if self.opened:
                await self.settled.wait()
            elif self.others_may_free():
                await asyncio.sleep(POLL)
            else:
                self.out_of_budget = True
                self.settled.set()
        raise OutOfBudget

    def others_may_free(self) -> bool:
        """Whether other runs have attempts under way that may cost less than is set aside."""
        caps, since = self.account.caps, time.time() - OTHERS
        so_far = ledger.spent(self.store.connection, caps.account)
        if caps.requests is not None and so_far.requests >= caps.requests:
            return False
        return ledger.under_way(self.store.connection, caps.account, self.account.run, since)

    def withdraw(self, number: int) -> None:
        """Take an attempt off the account that was not sent. Where that cannot be written it
        stays on, at the most it might have cost."""
        with contextlib.suppress(Unwritable), self.store.transaction() as connection:
            ledger.withdraw_attempt(connection, number)
        self.count_settled()

    async def close(self, number: int, outcome: ledger.Outcome) -> None:
        await self.written(lambda connection: ledger.close_attempt(connection, number, outcome))
        self.count_settled()

    def count_settled(self) -> None:
        """An attempt is off the account or has its final cost: there may be room for another."""
        self.opened -= 1
        self.settled.set()

    def outcome(self, parcel: Parcel, replies: list[Reply], seconds: float) -> ledger.Outcome:
        """What an answered attempt cost, by the server's own count where it gives one."""
        sent = total(reply.usage_prompt for reply in replies)
        written = total(reply.usage_completion for reply in replies)
        price = self.account.prices.of(parcel.model)
        usd = None
        if price and sent is not None and written is not None:
            usd = price.usd(sent, written)
        states = {reply.state for reply in replies}
        state = states.pop() if len(states) == 1 else "mixed"
        return ledger.Outcome(state, seconds, sent, written, usd)

    def failed(self, parcel: Parcel, failed: Failed, seconds: float) -> ledger.Outcome:
        """A refusal costs nothing, nor what was not sent; a time-out may have cost all it could."""
        if failed.status or failed.unsent:
            usd = 0.0 if self.account.prices.of(parcel.model) else None
            state = f"http_{failed.status}" if failed.status else "no_reply"
            return ledger.Outcome(state, seconds, 0, 0, usd)
        return ledger.Outcome("no_reply", seconds)


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of counts; None where one is not known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
