"""Processes elsewhere that answer what they are asked, many things at once.

A line leads to one of them. Where it is lost, be it killed, cut off or silent, whoever waits for an
answer is told so and may ask again, there or elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from bpo_data.engines.worker import portable

Serve = Callable[[Any], Awaitable[Any]]
"""Answers one letter, while others are on hand. Letters and answers must be picklable."""

Begin = Callable[[], Serve]
"""Sets up what answers, in each process; a function of a module, with no secret in it."""

Answer = tuple[int, Exception | None, Any]
"""(number of the letter, what was raised, what was answered)."""

BEAT = 5.0
"""Seconds between two signs of life."""
SILENT = 6
"""Such signs in a row that do not come from a process that is given up. Counted, and not by the
clock: a machine that slept has heard nothing and lost nothing."""
SIGN = 0
"""The number of the letter that asks for nothing else."""


class Lost(Exception):
    """The process was lost; in words, how."""


class Line(ABC):
    """The way to one process, as the one that asks has it. It belongs to the running event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self.loop.create_future()
        """How, once it is."""
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.numbers = itertools.count(SIGN + 1)
        self.heard = 0
        """Answers and signs of life so far."""

    @property
    def under_way(self) -> int:
        return len(self.waiting)

    async def ask(self, letter: Any) -> Any:
        """The answer. Raises what is raised there, and Lost."""
        if self.lost.done():
            raise Lost(self.lost.result())
        number = next(self.numbers)
        answer = self.waiting[number] = self.loop.create_future()
        try:
            self.put(number, letter)
            return await answer
        finally:
            del self.waiting[number]

    def take(self, number: int, error: Exception | None, value: Any) -> None:
        """An answer came."""
        self.heard += 1
        answer = self.waiting.get(number)
        if answer is None or answer.done():
            return  # a sign of life, or nobody waits any more
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error)

    def lose(self, reason: str) -> None:
        """Give it up."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_exception(Lost(reason))

    async def watch(self) -> str:
        """Wait until it is lost; how that came."""
        silent = 0
        while silent < SILENT and not self.lost.done():
            heard = self.heard
            self.put(SIGN, None)
            await asyncio.wait([self.lost], timeout=BEAT)
            silent = silent + 1 if self.heard == heard else 0
        self.lose(f"no sign of life for {SILENT * BEAT:.0f} s")
        return self.lost.result()

    @abstractmethod
    def put(self, number: int, letter: Any) -> None:
        """Send a letter; does not wait."""

    @abstractmethod
    def close(self) -> None:
        """End the process."""


class Lines(Protocol):
    """Opens lines to as many processes as an engine may use."""

    @property
    def count(self) -> int: ...

    async def open(self, begin: Begin) -> Line:
        """The way to a new process, which has been started. Raises Lost."""


OpenLines = Callable[[bool], "Lines | None"]
"""Lines of an engine, None where it has this process alone; true asks for processes on this
machine."""


def no_lines(here: bool) -> Lines | None:
    """Everything is done in this process."""
    return None


async def answered(serve: Serve, number: int, letter: Any) -> Answer:
    """What a process makes of a letter."""
    try:
        return number, None, None if number == SIGN else await serve(letter)
    except Exception as error:  # noqa: BLE001  (whoever asked raises it, whatever it is)
        return number, portable(error), None
