"""Sends what is to be asked: one server, many requests at once, each until something came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bpo_data.errors import UserError, some
from bpo_data.llm import ledger
from bpo_data.llm.failures import Failed
from bpo_data.llm.limits import Gate, Pass
from bpo_data.llm.patience import Patience, failed_in
from bpo_data.llm.replies import ANSWERED, Reply
from bpo_data.llm.requests import Parcel, halves
from bpo_data.llm.syncing import Syncer
from bpo_data.llm.till import Account, OutOfBudget, Till
from bpo_data.llm.transport import Wire, is_about_texts, redacted

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger(__name__)

QUIET = 10.0  # seconds between two lines about waiting
TICK = 0.5  # seconds between two looks at what waits
LOST = 8  # requests in a row without any server, after which the run stops
TOKENS_A_BYTE = 0.25  # of text in a request, expected: what the limit of tokens a minute counts on

Settle = Callable[[str, Reply, bool], None]
"""Told of each key's reply once it is on disk, and whether we asked for it; an exception of it
ends the asking."""


class Asker:
    """Sends parcels, waits and sends again; lives as long as one ``complete``."""

    def __init__(
        self,
        wire: Wire,
        gate: Gate,
        syncer: Syncer,
        account: Account,
        patience: Patience,
        settle: Settle,
        elsewhere: Callable[[], None] = lambda: None,
    ) -> None:
        self.wire, self.gate, self.syncer = wire, gate, syncer
        self.store = syncer.store
        self.till = Till(syncer.store, account, wire.endpoint.base_url)
        self.patience, self.settle = patience, settle
        self.elsewhere = elsewhere
        """Called when another run is found to ask for the same: go on at another place."""
        self.sending: set[asyncio.Task[None]] = set()
        """Workers whose request the server has, or whose answer is not on disk yet: the others have
        nothing to lose."""
        self.turned_away: set[object] = set()
        """Workers whose request was refused (429) and has not been sent again."""
        self.backing_off = 0
        """Requests that wait before another attempt, for other reasons than a 429."""
        self.closing = False
        self.told = float("-inf")
        """``time.monotonic()`` of the last line about waiting."""
        self.lost: int | None = None
        """Requests in a row that found no server at all; None until there was an answer."""

    async def ask_all(self, jobs: Iterator[Parcel], workers: int) -> None:
        """Each parcel to one of ``workers``. The first exception, and Ctrl-C, ends the asking:
        nothing new is sent, and answers under way are waited for, since they are paid for."""
        tasks = [asyncio.create_task(self.work(jobs)) for _ in range(workers)]
        try:
            # Not gather(): to cancel that is to cancel what is under way.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled():  # as one is that finds the asking at its end
                    task.result()
        finally:
            await self.drain(tasks)

    async def work(self, jobs: Iterator[Parcel]) -> None:
        for parcel in jobs:
            if self.closing:
                return
            held = self.store.get_many(parcel.keys)  # another run may have asked meanwhile
            ours = len(held) < len(parcel.keys)
            if ours:
                replies = await self.ask(parcel)
            else:
                replies = [held[key] for key in parcel.keys]
                await asyncio.sleep(0)  # of many in a row none holds up what is under way
            for key, reply in zip(parcel.keys, replies, strict=True):
                self.settle(key, reply, ours)

    async def drain(self, tasks: list[asyncio.Task[None]]) -> None:
        self.closing = True
        for task in tasks:
            if task not in self.sending:
                task.cancel()
        if self.sending:
            await asyncio.wait(tasks, timeout=1)
        if self.sending:
            log.warning(
                "%s: stopping; waiting up to %.0f s for %s under way (Ctrl-C again to leave them)",
                self.wire.endpoint.base_url,
                self.patience.drain,
                some(len(self.sending), "answer"),
            )
            await asyncio.wait(tasks, timeout=self.patience.drain)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, parcel: Parcel) -> list[Reply]:
        """Send until there is an answer, a failure that will not pass, or no attempt left."""
        from tenacity import AsyncRetrying, retry_if_exception

        attempts = 0
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(self.patience.worth_another),
                wait=self.patience.wait,
                stop=self.enough,
                sleep=self.back_off,
                before_sleep=self.tell,
                reraise=True,
            ):
                attempts += 1
                with attempt:
                    replies = await self.attempt(parcel, attempts)
        except OutOfBudget:
            self.turned_away.discard(asyncio.current_task())
            return [Reply("budget_stop", attempts=attempts - 1)] * len(parcel.keys)
        except Failed as failed:
            self.turned_away.discard(asyncio.current_task())
            if failed.nobody:
                self.count_lost(failed.words, attempts)
            reply = self.wire.failure(failed, attempts, self.hopeless(failed))
            if len(parcel.keys) > 1 and is_about_texts(reply):
                return [one for half in halves(parcel) for one in await self.ask(half)]
            # A prompt that the server filters stays filtered.
            return await self.till.written(lambda _: self.put(parcel, [reply] * len(parcel.keys)))
        self.lost = 0
        return replies

    def put(self, parcel: Parcel, replies: list[Reply]) -> list[Reply]:
        """Store what is an answer, within a transaction; the replies to go on with."""
        kept = [
            self.store.put(key, text, reply) if reply.state in ANSWERED else reply
            for key, text, reply in zip(parcel.keys, parcel.texts, replies, strict=True)
        ]
        if any(one is not other for one, other in zip(kept, replies, strict=True)):
            self.elsewhere()
        return kept

    async def attempt(self, parcel: Parcel, attempts: int) -> list[Reply]:
        """Send once; an answer is on disk when this returns."""
        await self.gate.place(again=attempts > 1)
        try:
            number = await self.till.reserve(parcel)
        except BaseException:
            self.gate.leave()
            raise
        try:
            leave = await self.gate.go(self.weight(parcel))
            self.turned_away.discard(asyncio.current_task())
            if self.closing:
                self.gate.leave()
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            self.till.withdraw(number)
            raise
        worker = asyncio.current_task()
        assert worker is not None
        self.sending.add(worker)
        try:
            replies = await self.send(parcel, attempts, number, leave)
        finally:
            self.sending.discard(worker)
        await self.syncer.synced()
        return replies

    async def send(self, parcel: Parcel, attempts: int, number: int, leave: Pass) -> list[Reply]:
        """Send, and commit what comes of it together with what it cost.

        Between the last byte of an answer and the try to commit it nothing can cancel.
        """
        began = time.monotonic()
        try:
            body = await self.wire.send(parcel.path, parcel.payload)
        except Failed as failed:
            self.closing = self.closing or self.hopeless(failed)
            if failed.busy and self.patience.worth_another(failed):
                self.gate.refused(leave, failed.wait)
                self.turned_away.add(asyncio.current_task())
            cost = self.till.failed(parcel, failed, time.monotonic() - began)
            await self.till.close(number, cost)
            raise
        finally:
            self.gate.leave()
        # Redacted once more, since in JSON the key may have stood in escapes.
        read = parcel.read(body, attempts=attempts)
        replies = [redacted(reply, self.wire.key) for reply in read]
        outcome = self.till.outcome(parcel, replies, time.monotonic() - began)

        def keep(connection: sqlite3.Connection) -> list[Reply]:
            ledger.close_attempt(connection, number, outcome)
            return self.put(parcel, replies)

        kept = await self.till.written(keep)
        used = None if outcome.tokens_in is None else outcome.tokens_in + (outcome.tokens_out or 0)
        self.gate.answered(leave, used)
        self.till.count_settled()
        return kept

    def hopeless(self, failed: Failed) -> bool:
        """Whether every request would be refused like this one. Once something was answered, a 403
        or 404 is taken to be about the one request: some gateways filter prompts that way."""
        one_of_many = self.gate.answers and failed.status in (403, 404)
        return failed.hopeless and not one_of_many

    def weight(self, parcel: Parcel) -> float:
        """Tokens to count on before the answer says how many there were."""
        return TOKENS_A_BYTE * parcel.tokens[0] + parcel.tokens[1]

    def enough(self, state: RetryCallState) -> bool:
        """Whether to give up; sooner on a server that has not answered at all in this run."""
        failed = failed_in(state)
        if self.closing:
            return True
        if failed.busy:
            return time.monotonic() - self.gate.last_answer > self.patience.refused_for
        nobody = self.lost is None and failed.nobody
        return state.attempt_number >= (
            min(3, self.patience.attempts) if nobody else self.patience.attempts
        )

    async def back_off(self, seconds: float) -> None:
        if not seconds:
            return
        self.backing_off += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.backing_off -= 1

    def count_lost(self, words: str, attempts: int) -> None:
        """Raise UserError when the server is not there, rather than try every row in turn."""
        if self.lost is not None:
            self.lost += 1
        if self.lost is None or self.lost >= LOST:
            raise UserError(
                f"{self.wire.endpoint.section}.base_url={self.wire.endpoint.base_url} does not "
                f"answer after {some(attempts, 'attempt')}: {words} Start the server or check the "
                f"address; the replies so far are kept, and the same command goes on from them."
            )

    def status(self, again: bool = False) -> str:
        """What is going on: ``12 in flight, 3 waiting on 429 (7 s), 1 retrying``.

        ``again``: seen from a request that failed just now and is about to be tried again.
        """
        parts = [f"{len(self.sending)} in flight"]
        cooling, waiting = self.gate.cooling(), len(self.gate.held | self.turned_away)
        if cooling:
            parts.append(f"{waiting} waiting on 429 ({cooling:.0f} s)")
        elif self.turned_away:
            parts.append(f"{waiting} waiting on 429")
        elif waiting:
            parts.append(f"{waiting} waiting for the rate limit")
        if self.backing_off + again:
            parts.append(f"{self.backing_off + again} retrying")
        return ", ".join(parts)

    def tell(self, state: RetryCallState) -> None:
        """A line now and then while requests wait, so that a slow run does not look stuck."""
        now = time.monotonic()
        if now - self.told < QUIET:
            return
        self.told = now
        failed = failed_in(state)
        last = f" of {self.patience.attempts}" if not failed.busy else ""
        log.warning(
            "%s: %s after attempt %d%s (%s)",
            self.wire.endpoint.base_url,
            self.status(again=not failed.busy),
            state.attempt_number,
            last,
            failed.words,
        )


async def watch(asker: Asker, shown: Callable[[str], None]) -> None:
    """Tell ``shown`` what is going on, until cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(TICK)
            shown(asker.status())
