"""Lines to processes on a Ray cluster.

A call of an actor costs whoever calls as much as sending a request itself would. So letters that
come soon after one another go in one call, and answers come back in one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from bpo_data import __version__
from bpo_data.engines.connecting import connected
from bpo_data.engines.lines import Answer, Begin, Line, Lost, Serve, answered
from bpo_data.engines.losses import reason_of
from bpo_data.runtime import Runtime, quiet_libraries

SOON = 0.01
"""Seconds between two calls the same way."""


class ClusterLines:
    """One process for each core of the cluster, or of this machine's part of it."""

    def __init__(self, runtime: Runtime, here: bool) -> None:
        self.ray = connected(runtime)
        self.options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        resources = self.ray.cluster_resources()
        if here:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            own = self.ray.get_runtime_context().get_node_id()
            (resources,) = (node["Resources"] for node in self.ray.nodes() if node["NodeID"] == own)
            self.options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(own, soft=False)}
        cores = int(resources.get("CPU", 0.0))
        self.count = min(runtime.processes or cores, cores)

    async def open(self, begin: Begin) -> Line:
        from ray.exceptions import RayError

        kind = self.ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1, **self.options)
        office = kind(Office).remote()
        try:
            refusal = await office.begin.remote(__version__, begin)
        except BaseException as error:
            self.ray.kill(office)
            if isinstance(error, RayError):
                raise Lost(reason_of(error)) from error
            raise
        if refusal:
            self.ray.kill(office)
            raise Lost(refusal)
        return ClusterLine(self.ray, office)


class ClusterLine(Line):
    def __init__(self, ray: Any, office: Any) -> None:
        super().__init__()
        self.ray, self.office = ray, office
        self.left: list[tuple[int, Any]] = []
        """Letters to go with the next call."""
        self.posting: asyncio.Task[None] | None = None
        self.collecting = asyncio.create_task(self.collect())

    def put(self, number: int, letter: Any) -> None:
        self.left.append((number, letter))
        if self.posting is None or self.posting.done():
            self.posting = asyncio.create_task(self.post())

    async def post(self) -> None:
        from ray.exceptions import RayError

        try:
            while self.left:
                letters, self.left = self.left, []
                await self.office.post.remote(letters)
                await asyncio.sleep(SOON)
        except RayError as error:
            self.lose(reason_of(error))

    async def collect(self) -> None:
        from ray.exceptions import RayError

        try:
            while True:
                for answer in await self.office.collect.remote():
                    self.take(*answer)
        except RayError as error:
            self.lose(reason_of(error))

    def close(self) -> None:
        self.lose("it was closed")
        self.collecting.cancel()
        if self.posting:
            self.posting.cancel()
        self.ray.kill(self.office)


class Office:
    """The other end: a process on some machine of the cluster."""

    def __init__(self) -> None:
        self.serve: Serve | None = None
        self.done: list[Answer] = []
        self.news = asyncio.Event()
        self.tasks = set[asyncio.Task[Answer]]()

    async def begin(self, version: str, begin: Begin) -> str:
        """Get ready; why this machine is not fit, or nothing."""
        if version != __version__:
            return f"{socket.gethostname()} has bpo_data {__version__}, here is {version}"
        quiet_libraries()
        logging.disable()  # what is said here would end in a file of Ray's
        self.serve = begin()
        return ""

    async def post(self, letters: list[tuple[int, Any]]) -> None:
        assert self.serve is not None, "begin comes first"
        for number, letter in letters:
            task = asyncio.create_task(answered(self.serve, number, letter))
            self.tasks.add(task)
            task.add_done_callback(self.keep)

    def keep(self, task: asyncio.Task[Answer]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self.done.append(task.result())
            self.news.set()

    async def collect(self) -> list[Answer]:
        """Answers that were not collected yet, once there are any."""
        await self.news.wait()
        await asyncio.sleep(SOON)
        self.news.clear()
        done, self.done = self.done, []
        return done
