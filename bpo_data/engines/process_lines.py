"""Lines to processes on this machine, over pairs of sockets."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import pickle
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from bpo_data import stopping
from bpo_data.engines.lines import Answer, Begin, Line, Lost, Serve, answered
from bpo_data.engines.processes import end_with_parent
from bpo_data.runtime import Runtime, cores, quiet_libraries

SIZE = struct.Struct("!Q")
"""Of what follows, in bytes."""
ENDING = 1.0
"""Seconds that a process which has closed its end is given to be gone."""


class ProcessLines:
    """One process for each share of the cores, spawned like those that make parts."""

    def __init__(self, runtime: Runtime) -> None:
        self.count = runtime.processes or max(1, cores() // runtime.threads)

    async def open(self, begin: Begin) -> Line:
        here, there = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve, args=(there, begin), daemon=True)
        try:
            process.start()
        except OSError as error:
            here.close()
            raise Lost(f"it could not be started: {error.strerror}") from error
        finally:
            there.close()
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(lambda: ProcessLine(process), sock=here)
        return line


class ProcessLine(Line, asyncio.Protocol):
    def __init__(self, process: BaseProcess) -> None:
        super().__init__()
        self.process = process
        self.came = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for answer in self.came.whole(data):
            self.take(*answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.process.join(ENDING)
        code = self.process.exitcode
        how = f"it ended with status {code}"
        if code is None:
            how = "it closed its end"
        elif code < 0:
            how = f"it was ended by {signal.Signals(-code).name}"
        self.lose(how)

    def put(self, number: int, letter: Any) -> None:
        self.transport.write(framed((number, letter)))

    def close(self) -> None:
        self.lose("it was closed")
        self.transport.abort()
        self.process.kill()
        self.process.join(ENDING)


class Frames:
    """Puts together what comes over a socket in pieces."""

    def __init__(self) -> None:
        self.came = bytearray()

    def whole(self, data: bytes) -> Iterator[Any]:
        """What is complete with these bytes."""
        self.came += data
        while len(self.came) >= SIZE.size:
            end = SIZE.size + SIZE.unpack_from(self.came)[0]
            if len(self.came) < end:
                return
            with memoryview(self.came) as view, view[SIZE.size : end] as content:
                found = pickle.loads(content)
            del self.came[:end]
            yield found


def framed(message: Any) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return SIZE.pack(len(content)) + content


class Counter(asyncio.Protocol):
    """The other end: answers letters until nobody is there to send any."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.came = Frames()
        self.tasks = set[asyncio.Task[Answer]]()
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for number, letter in self.came.whole(data):
            task = asyncio.create_task(answered(self.serve, number, letter))
            self.tasks.add(task)
            task.add_done_callback(self.tell)

    def tell(self, task: asyncio.Task[Answer]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self.transport.write(framed(task.result()))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _serve(end: socket.socket, begin: Begin) -> None:
    end_with_parent()
    quiet_libraries()
    stopping.deafen()  # what is sent to the whole group is the parent's to judge
    logging.disable()  # the same lines would come from every process
    asyncio.run(_until_closed(end, begin()))


async def _until_closed(end: socket.socket, serve: Serve) -> None:
    loop = asyncio.get_running_loop()
    _, counter = await loop.create_connection(lambda: Counter(serve), sock=end)
    gc.freeze()  # through all that was imported a look for garbage takes long
    with suppress(asyncio.CancelledError):
        await counter.ended
