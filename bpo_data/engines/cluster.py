"""Parts made on a Ray cluster, one that is there already or one on this machine.

Ray Core only starts and ends workers here. Which part is done is known by its file, which is whole
or not there, so a part may safely be made twice: a worker that is lost, silent or slow beyond its
lease is given up and its part handed to another. Workers are never restarted by Ray itself, which
would wait for ever for a machine that is gone for good.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpo_data import __version__, stopping
from bpo_data.engines import Make, Part, Place, SetUp, Write, named
from bpo_data.errors import UserError, some
from bpo_data.runtime import Runtime, keep_freed_memory, quiet_libraries

TRIES = 5
"""Workers that a part may be lost with before it is taken to be what ends them."""
LEAST_LEASE = 30.0
"""Seconds that any worker is given for a part."""
TICK = 1.0
"""Seconds between two looks at leases and at whether to stop."""


class Worker:
    """What runs on the cluster."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.make: Make | None = None

    def begin(self, set_up: SetUp, number: int) -> tuple[str, str]:
        """Load what is needed; (our version, the machine's name)."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(
                f"runtime.engine=ray: {socket.gethostname()} does not see {self.folder}, where the "
                f"command was started. Start it in a folder that all machines share."
            ) from error
        keep_freed_memory()
        quiet_libraries()
        self.make = set_up(Place(number))
        return __version__, socket.gethostname()

    def work(self, part: Part, write: Write) -> None:
        assert self.make is not None, "begin comes first"
        try:
            write(part[0], self.make(part[1]))
        except Exception as error:  # rises whole, with what we know
            named(error, part)
            raise


@dataclass
class Task:
    """Something that a worker is doing."""

    worker: Any
    part: Part | None
    """None while it begins."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Cluster:
    """The engine ``ray``."""

    here = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.lost = 0
        """Workers that ended, or were given up, before their part was done."""

    @property
    def facts(self) -> dict[str, Any]:
        return {"engine": "ray"} | ({"workers_lost": self.lost} if self.lost else {})

    def each(
        self, parts: Sequence[Part], set_up: SetUp, write: Write, progress: Any
    ) -> Iterator[int]:
        if not parts:
            return
        crew = Crew(self, self.runtime, set_up, write)
        left, tries = deque(parts), Counter[str]()
        try:
            while left or crew.working():
                if not stopping.asked():
                    crew.enlist(len(left))
                    crew.hand_out(left)
                elif not crew.working():
                    break
                for part, done in crew.look():
                    if done:
                        yield part[1].num_rows
                        continue
                    self.lost += 1
                    tries[part[0]] += 1
                    if tries[part[0]] == TRIES:
                        raise UserError(
                            f"runtime.engine=ray: {some(TRIES, 'worker')} in turn were lost while "
                            f"making {part[0]}, most often for want of memory. Use smaller batches "
                            f"or fewer workers a machine, and run the same command again: parts "
                            f"that are done are kept."
                        )
                    left.appendleft(part)
            stopping.check()
        finally:
            crew.dismiss()


class Crew:
    """The workers of one stage."""

    def __init__(self, cluster: Cluster, runtime: Runtime, set_up: SetUp, write: Write) -> None:
        self.cluster, self.runtime = cluster, runtime
        self.ray = connected(runtime)
        self.write = write
        self.set_up = self.ray.put(set_up)
        self.size, options = shares(self.ray.cluster_resources(), runtime)
        self.kind = self.ray.remote(max_restarts=0, max_task_retries=0, **options)(Worker)
        self.tasks: dict[Any, Task] = {}
        self.idle: list[Any] = []
        self.hired = 0
        self.slowest = 0.0
        self.empty_since = time.monotonic()
        self.stillborn = 0
        """Workers in turn that were lost before they had begun."""

    def working(self) -> bool:
        """Whether a part is under way."""
        return any(task.part for task in self.tasks.values())

    def enlist(self, wanted: int) -> None:
        """Start workers until there are as many as there may be, or as can be of use."""
        beginning = sum(task.part is None for task in self.tasks.values())
        room = self.size - len(self.tasks) - len(self.idle)
        for _ in range(min(room, wanted - len(self.idle) - beginning)):
            worker = self.kind.remote(os.getcwd())
            begun = worker.begin.remote(self.set_up, self.hired)
            self.tasks[begun] = Task(worker, None)
            self.hired += 1

    def hand_out(self, left: deque[Part]) -> None:
        while left and self.idle:
            worker, part = self.idle.pop(), left.popleft()
            self.tasks[worker.work.remote(part, self.write)] = Task(worker, part)

    def look(self) -> Iterator[tuple[Part, bool]]:
        """(a part, whether it is done) of each that was finished or lost since the last look.

        Raises what a maker raised, and UserError where no worker begins.
        """
        done, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        if not done:
            done, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=TICK)
        for reference in done:
            task = self.tasks.pop(reference)
            whole = self.ended(reference, task)
            if task.part:
                yield task.part, whole
            elif not whole:
                self.stillborn += 1
        for reference, task in list(self.tasks.items()):
            if task.seconds > self.lease(task):
                del self.tasks[reference]
                self.ray.kill(task.worker)
                if task.part:
                    yield task.part, False
        self.check_alive()

    def ended(self, reference: Any, task: Task) -> bool:
        """Whether what a worker was doing came to its end; then it is idle."""
        from ray.exceptions import RayError, RayTaskError

        try:
            told = self.ray.get(reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError:  # the worker, its machine or the way there is gone
            self.ray.kill(task.worker)
            return False
        if task.part is None and told[0] != __version__:
            raise UserError(
                f"runtime.engine=ray: {told[1]} has bpo_data {told[0]}, here is {__version__}. "
                f"Install the same on all machines."
            )
        if task.part:
            self.slowest = max(self.slowest, task.seconds)
        self.stillborn = 0
        self.idle.append(task.worker)
        return True

    def lease(self, task: Task) -> float:
        """Seconds that a worker is given for what it does."""
        if task.part is None or not self.slowest:
            return self.runtime.lease
        return max(LEAST_LEASE, 4 * self.slowest)

    def check_alive(self) -> None:
        """Raise UserError where workers are lost before they begin, or none has for two leases."""
        if self.stillborn >= TRIES:
            raise UserError(
                f"runtime.engine=ray: {some(TRIES, 'worker')} in turn were lost while loading what "
                f"they need, most often for want of memory. Use fewer workers a machine."
            )
        if self.idle or self.working():
            self.empty_since = time.monotonic()
        elif time.monotonic() - self.empty_since > 2 * self.runtime.lease:
            raise UserError(
                f"runtime.engine=ray: no worker began within {2 * self.runtime.lease:g} s "
                f"(runtime.lease). The cluster has {self.ray.available_resources()} free; use "
                f"fewer runtime.threads, or another runtime.address."
            )

    def dismiss(self) -> None:
        for worker in [*self.idle, *(task.worker for task in self.tasks.values())]:
            self.ray.kill(worker)


def connected(runtime: Runtime) -> Any:
    """Ray, with the cluster that ``runtime.address`` names, or one on this machine.

    Raises UserError where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import logging

    import ray

    if ray.is_initialized():
        return ray
    own = {} if runtime.address else {"num_cpus": runtime.process_count() * runtime.threads}
    try:
        ray.init(
            address=runtime.address or "local",
            include_dashboard=None if runtime.address else False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **own,
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"runtime.address={runtime.address} is no Ray cluster that answers: {reason}"
        ) from error
    return ray


def shares(resources: dict[str, float], runtime: Runtime) -> tuple[int, dict[str, float]]:
    """(workers, what each takes of the cluster): a GPU each as far as they go round."""
    cpus = resources.get("CPU", 0.0)
    gpus = 0.0 if runtime.device == "cpu" else resources.get("GPU", 0.0)
    count = runtime.processes or int(gpus or max(1, cpus // runtime.threads))
    options = {"num_cpus": float(runtime.threads)}
    if gpus:
        options["num_gpus"] = 1.0 if count <= gpus else int(100 * gpus / count) / 100
    return count, options
