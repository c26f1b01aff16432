"""Fetches what came of a batch that is over, and says when that is not what was asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from bpo_data.errors import UserError, some
from bpo_data.llm.batch_book import BatchBook, Ticket
from bpo_data.llm.batch_lines import Answer, Batch, read_line
from bpo_data.llm.batch_wire import BatchWire
from bpo_data.llm.endpoint import redact
from bpo_data.llm.replies import Reply, shown
from bpo_data.llm.store import AT_ONCE

log = logging.getLogger(__name__)

OVER = frozenset({"completed", "expired", "cancelled", "failed"})


class Collector:
    """Stores the answers of batches; ``taken`` is told of each once it is on disk."""

    def __init__(
        self, book: BatchBook, wire: BatchWire, taken: Callable[[str, Reply], None]
    ) -> None:
        self.book, self.wire, self.taken = book, wire, taken
        self.endpoint, self.key = wire.wire.endpoint, wire.wire.key

    async def collect(self, ticket: Ticket, batch: Batch) -> None:
        """Store what came of a batch that is over, and say so when it is not what was asked."""
        import openai

        for file in (batch.output, batch.errors):
            if file:
                try:
                    await self.fetch(ticket, file)
                except openai.NotFoundError as error:
                    raise self.gone(ticket, f"file {file} of batch {batch.id}", error) from None
        if batch.status == "completed":
            lost = Reply("no_reply", detail=f"batch {batch.id} ended without a line for it.")
            self.settle(ticket, [Answer(place, lost) for place in self.book.left(ticket)])
            return
        undone = self.book.withdraw(ticket)
        log.warning(
            "%s: batch %s %s with %s of %s done",
            *(self.endpoint.base_url, batch.id, batch.status, f"{ticket.lines - undone:,}"),
            some(ticket.lines, "request"),
        )
        if batch.status != "expired" or undone == ticket.lines:
            raise self.stopped(ticket, batch)

    async def fetch(self, ticket: Ticket, file: str) -> None:
        """Settle a file's lines, some at a time; begun again, it passes over what it settled."""
        async for attempt in self.wire.trying():
            with attempt:
                odd, answers = 0, list[Answer]()
                async with aclosing(self.wire.lines(file)) as lines:
                    async for line in lines:
                        if not line.strip():
                            continue
                        answer = read_line(line, self.key)
                        if answer is None or not 0 <= answer.place < ticket.lines:
                            odd += 1
                        elif answer.reply:
                            answers.append(answer)
                        if len(answers) == AT_ONCE:
                            self.settle(ticket, answers)
                            answers.clear()
                self.settle(ticket, answers)
                if odd:
                    log.warning(
                        "%s: batch %s: %s of its file %s cannot be read",
                        *(self.endpoint.base_url, ticket.remote, some(odd, "line"), file),
                    )

    def settle(self, ticket: Ticket, answers: list[Answer]) -> None:
        for key, reply in self.book.settle(ticket, answers):
            self.taken(key, reply)

    def stopped(self, ticket: Ticket, batch: Batch) -> UserError:
        """Why the batch that ended so is not followed by another."""
        whose = (
            f"{self.endpoint.section}.base_url={self.endpoint.base_url}: batch {batch.id} of "
            f"{some(ticket.lines, 'request')}"
        )
        if batch.status == "cancelled":
            return UserError(
                f"{whose} was cancelled. What it had done is kept; the same command asks for the "
                f"rest in a new batch, {self.wire.live()} without one."
            )
        if batch.status == "expired":
            return UserError(
                f"{whose} expired with nothing done; none of it is paid. Run the same command "
                f"when the server has more room, or use {self.wire.live()}."
            )
        said = shown(redact("; ".join(batch.problems) or "no reason given.", self.key))
        return UserError(
            f"{whose} was refused: {said} None of it is paid. Change what it names and run the "
            f"same command, or use {self.wire.live()}."
        )

    def gone(self, ticket: Ticket, what: str, error: Exception) -> UserError:
        """A batch that was made, and is not there: the answers cannot be had from it."""
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(ticket.made))
        ticket.state = "gone"  # so that live mode may ask anew
        self.book.note(ticket)
        said = self.wire.wire.failed(error).words
        return UserError(
            f"{self.endpoint.section}.base_url={self.endpoint.base_url} does not have {what} with "
            f"{some(ticket.lines, 'request')} of {made} UTC ({said}). Put "
            f"the key that made it in {self.endpoint.key_variable}, or use {self.wire.live()} to "
            f"pay for these requests anew."
        )


def is_over(batch: Batch) -> bool:
    """Whether all that will come of a batch can be fetched."""
    return batch.status in OVER and bool(batch.output or batch.errors or not batch.done)
