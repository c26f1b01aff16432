"""Senders as tests need them: used from the first request on, in this process or in real ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import asking
import psutil
import pytest

from bpo_data.engines import engine_of
from bpo_data.engines.lines import Begin, Line, Lines, OpenLines, Serve, answered
from bpo_data.engines.process_lines import Frames, framed
from bpo_data.llm import client, senders
from bpo_data.llm.senders import SpreadWire, sending
from bpo_data.llm.transport import Wire
from bpo_data.runtime import Runtime


class HereLine(Line):
    """What answers runs in this process; all that comes and goes is pickled as for another."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self.serve = serve
        self.tasks = set[asyncio.Task[None]]()

    def put(self, number: int, letter: Any) -> None:
        (came,) = Frames().whole(framed((number, letter)))
        task = asyncio.create_task(self.answer(*came))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, number: int, letter: Any) -> None:
        (told,) = Frames().whole(framed(await answered(self.serve, number, letter)))
        self.take(*told)

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        wire = getattr(self.serve, "wire", None)
        if wire:
            self.tasks.add(asyncio.create_task(wire.client.close()))


class HereLines:
    """Opens lines to nowhere else; ``serve`` in place of what would be begun."""

    def __init__(self, count: int = 2, serve: Serve | None = None) -> None:
        self.count = count
        self.serve = serve
        self.opened: list[Line] = []

    def __call__(self, here: bool) -> HereLines:
        return self

    async def open(self, begin: Begin) -> Line:
        line = HereLine(self.serve or begin())
        self.opened.append(line)
        return line


@contextlib.asynccontextmanager
async def ready(wire: Wire, found: Lines | None, count: int = 1) -> AsyncIterator[Wire]:
    """``sending``, begun when so many senders are ready."""
    async with sending(wire, found) as spread:
        async with asyncio.timeout(60):
            while isinstance(spread, SpreadWire) and len(spread.up) < count:
                await asyncio.sleep(0.005)
        yield spread


def spread(monkeypatch: pytest.MonkeyPatch, lines: OpenLines, count: int = 1) -> None:
    """Have ``asking.ask`` send by such lines, however little, and not before so many are ready."""
    monkeypatch.setattr(senders, "WORTH", 0)
    monkeypatch.setattr(client, "sending", partial(ready, count=count))
    monkeypatch.setattr(asking, "LINES", lines)


def real(processes: int = 1, engine: str = "processes") -> OpenLines:
    """Lines of an engine."""
    return engine_of(Runtime(engine=engine, processes=processes, device="cpu")).lines


def children(parent: int | None = None) -> list[psutil.Process]:
    """Senders that a process has made."""
    found = []
    for child in psutil.Process(parent or os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found
