"""Requests by a server's batch endpoint: half the price at most vendors, within a day.

What is under way stands in the request store from before it is sent, so a run that ends, however it
ends, leaves nothing behind: the next one finds its batches at the server and collects them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from bpo_data import stopping
from bpo_data.errors import some
from bpo_data.llm.batch_book import BatchBook, Ticket, alone
from bpo_data.llm.batch_collect import Collector, is_over
from bpo_data.llm.batch_lines import Batch, cut
from bpo_data.llm.batch_wire import BatchWire, Pace, Unclear, refuses
from bpo_data.llm.client import OnDone, Work, check_failures, this_task
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.patience import Patience
from bpo_data.llm.replies import Reply
from bpo_data.llm.requests import CHAT, Askable, keyed
from bpo_data.llm.store import RequestStore
from bpo_data.llm.till import Account
from bpo_data.llm.transport import Wire, open_client

log = logging.getLogger(__name__)

DEFAULT_ACCOUNT = Account()
DEFAULT_PATIENCE = Patience()
DEFAULT_PACE = Pace()
MINUTE = 60.0

Asked = tuple[str, Askable, str]
"""Key, request and ``request_text``."""


def complete_batch(
    requests: Sequence[tuple[Askable, int]],
    *,
    endpoint: Endpoint,
    store: RequestStore,
    account: Account = DEFAULT_ACCOUNT,
    patience: Patience = DEFAULT_PATIENCE,
    pace: Pace = DEFAULT_PACE,
    on_done: OnDone | None = None,
    shown: Callable[[str], None] | None = None,
    max_failed: float = 1.0,
) -> list[Reply]:
    """What ``client.complete`` does, by batches: same store, same keys, same states.

    Batches under way, of this run or another, are waited for and not sent again; what one left
    undone when it expired goes into a new one. ``shown`` is told at each look how far they are.
    Raises UserError when there is no key or no batch endpoint, when the server refuses a batch or
    cancels it, when one expires with nothing done, and when more than the share ``max_failed`` of
    the requests failed; whatever was answered until then, or until Ctrl-C, is kept.
    """
    if any(request.path != CHAT for request, _ in requests):
        raise ValueError("batches are made of chat requests alone")
    work = Work(list(keyed(requests, endpoint)), endpoint, store, on_done, max_failed)
    missing = work.take_held()
    if missing:
        key = endpoint.key()
        try:
            asyncio.run(ask(work, missing, key, account, patience, pace, shown))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    replies = [work.replies[index] for index in range(len(requests))]
    check_failures(replies, max_failed, endpoint.section)
    return replies


async def ask(
    work: Work,
    missing: list[Asked],
    key: str,
    account: Account,
    patience: Patience,
    pace: Pace,
    shown: Callable[[str], None] | None,
) -> None:
    import openai

    client = open_client(work.endpoint, key, patience.timeout)
    wire = BatchWire(Wire(work.endpoint, key, patience.timeout, client), patience, pace)
    batches = Batches(work, BatchBook(work.store, work.endpoint.base_url, account), wire, shown)
    async with client:
        with stopping.cancels(this_task()):
            try:
                await batches.ask_all(missing)
            except (openai.APIError, Unclear) as error:
                # `from None`: the library's exception holds the server's words, maybe with the key.
                raise wire.fault(error) from None
            except asyncio.CancelledError:
                batches.tell_stopped(missing)
                raise


class Batches:
    """Brings the missing replies by batches; lives as long as one ``complete_batch``."""

    def __init__(
        self, work: Work, book: BatchBook, wire: BatchWire, shown: Callable[[str], None] | None
    ) -> None:
        self.work, self.book, self.wire, self.shown = work, book, wire, shown
        self.collector = Collector(book, wire, self.take)
        self.url = work.endpoint.base_url

    async def ask_all(self, missing: list[Asked]) -> None:
        """Make batches of what nobody has asked for and follow all that hold a missing key.

        Each turn brings a key its reply, or leaves it to the next: what expired, and what another
        process collected and could not keep.
        """
        while missing:
            keys = [key for key, _, _ in missing]
            async with alone(self.work.store.path, self.url):
                for ticket in self.book.under_way(keys):
                    if ticket.remote is None:
                        await self.recover(ticket)
                under_way = self.book.keys_under_way(keys)
                new = [one for one in self.take_held(missing) if one[0] not in under_way]
                for asked in cut(new, self.wire.pace.lines, self.wire.pace.bytes):
                    await self.submit(asked)
                tickets = self.book.under_way(keys)
            await self.follow(tickets)
            missing = self.take_held(missing)

    def take(self, key: str, reply: Reply) -> None:
        if key in self.work.places:  # a batch may hold what this run has no use for
            self.work.take(key, reply, fresh=True)

    def take_held(self, missing: list[Asked]) -> list[Asked]:
        """Take what another process stored meanwhile; what still has no reply."""
        lacking = [one for one in missing if self.work.places[one[0]][0] not in self.work.replies]
        held = self.work.store.get_many(key for key, _, _ in lacking)
        for key, reply in held.items():
            self.work.take(key, reply, fresh=False)
        return [one for one in lacking if one[0] not in held]

    async def recover(self, ticket: Ticket) -> None:
        """Find out whether the server has a batch whose maker was cut off; if not, strike it."""
        found = None
        if ticket.file:
            found = await self.wire.look_up(ticket.id, ticket.file, ticket.made)
        if found:
            ticket.remote, ticket.state = found.id, found.status
            self.book.note(ticket)
        else:
            self.book.withdraw(ticket)

    async def submit(self, asked: list[Asked]) -> None:
        """Claim, upload, make: killed after any step, the next run knows what was done."""
        ticket, stopped = self.book.claim(asked)
        for key, reply in stopped.items():
            self.take(key, reply)
        if ticket is None:
            return
        self.say(f"sending a batch of {some(ticket.lines, 'request')}")
        try:
            ticket.file = await self.wire.upload(self.book.input_lines(ticket))
            self.book.note(ticket)
        except BaseException:
            self.book.withdraw(ticket)
            raise
        try:
            made = await self.wire.create(ticket.id, ticket.file, ticket.made)
        except Exception as error:  # rises either way: only whether it was made is asked here
            if refuses(error):
                self.book.withdraw(ticket)
            raise
        ticket.remote, ticket.state = made.id, made.status
        self.book.note(ticket)
        log.info("%s: batch %s of %s made", self.url, made.id, some(ticket.lines, "request"))

    async def follow(self, tickets: list[Ticket]) -> None:
        """Look at each batch, again and again, until it is over and collected."""
        following = dict(enumerate(tickets, start=1))
        wait, seen = self.wire.pace.first_wait, time.monotonic()
        while following:
            asked = 0.0
            for number, ticket in list(following.items()):
                try:
                    batch = await self.look(ticket)
                    seen = time.monotonic()
                except Exception as error:  # rises unless it is one that passes
                    lost = time.monotonic() - seen > self.wire.pace.lost_for
                    if lost or not self.wire.passes(error):
                        raise
                    failed = self.wire.wire.failed(error)
                    asked = max(asked, failed.wait or 0.0)
                    self.say(f"no news of its batches: {failed.words}")
                    continue
                if batch and not is_over(batch):
                    self.tell(ticket, batch, f"batch {number} of {len(tickets)}")
                    continue
                if batch:
                    await self.collector.collect(ticket, batch)
                del following[number]
            if following:
                await asyncio.sleep(max(wait, asked))
                wait = min(self.wire.pace.longest_wait, 1.5 * wait)

    async def look(self, ticket: Ticket) -> Batch | None:
        """A batch as it is now; None when another process has collected it."""
        import openai

        if not self.book.is_open(ticket):
            return None
        assert ticket.remote is not None
        try:
            batch = await self.wire.look(ticket.remote)
        except openai.NotFoundError as error:
            raise self.collector.gone(ticket, f"batch {ticket.remote}", error) from None
        if batch.status != ticket.state:
            ticket.state = batch.status
            self.book.note(ticket)
        return batch

    def tell(self, ticket: Ticket, batch: Batch, name: str) -> None:
        minutes = max(0.0, time.time() - ticket.made) / MINUTE  # a clock may be set back
        done = f"{batch.done:,} of {ticket.lines:,} done"
        self.say(f"{name}: {done}, {batch.status} for {minutes:,.0f} min")

    def say(self, status: str) -> None:
        if self.shown:
            self.shown(status)

    def tell_stopped(self, missing: list[Asked]) -> None:
        """Say what goes on without this run."""
        tickets = self.book.under_way([key for key, _, _ in missing])
        if tickets:
            log.warning(
                "%s: %s in batches go on at the server; the same command collects the replies",
                *(self.url, some(sum(ticket.lines for ticket in tickets), "request")),
            )
