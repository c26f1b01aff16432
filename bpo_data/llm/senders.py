"""Requests sent by processes of the engine; whether, when and at whose cost stays decided here.

Nearly all that a request costs in processor time is the sending: HTTP, TLS, JSON. So that, and no
more, is done elsewhere. An attempt is on the account before it is handed over and its answer is
committed here, so one rate, one budget and one store hold for all senders, and one that is lost
takes nothing with it but the attempts that it had under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpo_data import stopping
from bpo_data.engines.lines import Line, Lines, Lost, OpenLines
from bpo_data.errors import some
from bpo_data.llm.endpoint import Endpoint
from bpo_data.llm.failures import Failed
from bpo_data.llm.requests import Askable
from bpo_data.llm.transport import Wire, open_client

log = logging.getLogger("bpo_data")

WORTH = 1_000
"""Bodies to send from which senders are started: to start one costs as much as to send 500."""
MOST = 4
"""Senders: two send what one process can hand out (BENCHMARKS.md), more where TLS is dear."""
START = 120.0
"""Seconds that a sender is given to begin."""
TRIES = 3
"""Senders that are lost in turn, after which none takes their place."""
LASTING = 600.0
"""Seconds after which the loss of a sender does not count as one in turn."""


@dataclass(frozen=True)
class Opening:
    """The first letter to a sender. The key goes in a letter, never in what starts a process."""

    endpoint: Endpoint
    key: str = field(repr=False)
    timeout: float


class Sender:
    """What a sender does with its letters: an ``Opening``, then (path, payload) each."""

    wire: Wire | None = None

    async def __call__(self, letter: Any) -> str | None:
        if isinstance(letter, Opening):
            self.wire = open_wire(letter.endpoint, letter.key, letter.timeout)
            return None
        assert self.wire is not None, "the opening comes first"
        return await self.wire.send(*letter)


def open_wire(endpoint: Endpoint, key: str, timeout: float) -> Wire:
    return Wire(endpoint, key, timeout, open_client(endpoint, key, timeout))


@contextlib.asynccontextmanager
async def sending(wire: Wire, lines: Lines | None) -> AsyncIterator[Wire]:
    """The wire to send by: through senders where there are lines to them."""
    if lines is None:
        yield wire
        return
    spread = SpreadWire(wire.endpoint, wire.key, wire.timeout, wire.client)
    keepers = [asyncio.create_task(spread.keep(lines)) for _ in range(min(lines.count, MOST))]
    try:
        yield spread
    finally:
        for keeper in keepers:
            keeper.cancel()
        ended = await asyncio.gather(*keepers, return_exceptions=True)
    for error in ended:
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise error


def lines_for(
    requests: Sequence[tuple[str, Askable, str]], endpoint: Endpoint, open_lines: OpenLines
) -> Lines | None:
    """Lines to senders, where there is so much to ask that they are worth their start. What this
    machine calls its own address is another's on another."""
    bodies = sum(1 / request.together for _, request, _ in requests)
    return open_lines(endpoint.is_local()) if bodies >= WORTH else None


@dataclass(frozen=True)
class SpreadWire(Wire):
    """Sends by whichever sender has least under way, and from here while there is none."""

    up: list[Line] = field(default_factory=list)
    """To senders that are ready."""
    reached: set[Line] = field(default_factory=set)
    """To those of them that the server has answered."""

    async def send(self, path: str, payload: dict[str, Any]) -> str:
        up = (line for line in self.up if not line.lost.done())
        line = min(up, key=lambda line: line.under_way, default=None)
        if line is None:
            return await super().send(path, payload)
        try:
            body: str = await line.ask((path, payload))
        except Lost as lost:
            words = f"The process that sent it was lost: {lost}."
            raise Failed(words, lost=True) from None
        except Failed as failed:
            if failed.unsent and line not in self.reached:
                return await self.send_from_here(line, path, payload)
            self.reached.add(line)
            raise
        self.reached.add(line)
        return body

    async def send_from_here(self, line: Line, path: str, payload: dict[str, Any]) -> str:
        """It may be the sender's machine alone that has no way to the server. It is given up, once
        all that was handed to it has come back."""
        body = await super().send(path, payload)
        if line in self.up:
            self.up.remove(line)
        if not line.under_way:
            line.lose(f"it does not reach {self.endpoint.base_url}, as this process does")
        return body

    async def keep(self, lines: Lines) -> None:
        """Keep a sender up, and put another in its place when it is lost."""
        losses = 0
        while losses < TRIES:
            begun = time.monotonic()
            reason = await self.one(lines)
            losses = 1 if time.monotonic() - begun > LASTING else losses + 1
            log.warning("%-10s a sender was lost: %s", stopping.doing, reason)
        where = some(len(self.up), "other sender") if self.up else "this process"
        log.warning(
            "%-10s %s were lost in turn: none takes their place, %s goes on. Use fewer of them "
            "(runtime.processes) if memory was short.",
            *(stopping.doing, some(TRIES, "sender"), where),
        )

    async def one(self, lines: Lines) -> str:
        """Have a sender until it is lost; how that came."""
        line = None
        try:
            async with asyncio.timeout(START):
                line = await lines.open(Sender)
                await line.ask(Opening(self.endpoint, self.key, self.timeout))
            self.up.append(line)
            return await line.watch()
        except Lost as lost:
            return str(lost)
        except TimeoutError:
            return f"it did not begin within {START:.0f} s"
        finally:
            if line in self.up:
                self.up.remove(line)
            if line is not None:
                line.close()
