"""Parts made on a Ray cluster, one that is there already or one on this machine.

Ray Core only starts and ends workers here. Which part is done is known by its file, which is whole
or not there, so a part may safely be made twice: a worker that is lost, silent or slow beyond its
lease is given up and its part handed to another. Workers are never restarted by Ray itself, which
would wait for ever for a machine that is gone for good.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

from bpo_data import __version__, stopping
from bpo_data.engines import Part, SetUp, Write, alone, named
from bpo_data.engines.cluster_lines import ClusterLines
from bpo_data.engines.connecting import connected, shares
from bpo_data.engines.hiring import Hired, Task, There, folders, packed
from bpo_data.engines.lines import Lines
from bpo_data.engines.losses import Losses, reason_of
from bpo_data.engines.worker import Told, Worker, appears, put
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime

LEAST_LEASE = 30.0
"""Seconds that any worker is given for a part."""
TICK = 1.0
"""Seconds between two looks at leases and at whether to stop."""
RECOUNT = 5.0
"""Seconds between two looks at how large the cluster is."""
QUIET = 60.0
"""Seconds without any worker after which that is said."""
SHARED = 90.0
"""Seconds in which this machine sees a part that another one has written."""

log = logging.getLogger("bpo_data")


class Cluster:
    """The engine ``ray``. What workers hold, and what they make, must be picklable."""

    here = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.facts: dict[str, Any] = {}

    def check(self) -> None:
        """A cluster that is named is one that answers."""
        if self.runtime.address:
            connected(self.runtime)

    def each(
        self, parts: Iterable[Part], set_up: SetUp, write: Write, progress: Any
    ) -> Iterator[int]:
        self.facts = {"engine": "ray", "device": self.runtime.device}
        coming = iter(parts)
        first = next(coming, None)
        if first is None:
            return
        crew = Crew(self.runtime, chain([first], coming), set_up, write)
        try:
            yield from crew.made()
        finally:
            crew.dismiss()
            self.facts |= crew.facts()

    def lines(self, here: bool) -> Lines:
        return ClusterLines(self.runtime, here)


class Crew:
    """The workers of one stage and what they have to do."""

    def __init__(
        self, runtime: Runtime, parts: Iterator[Part], set_up: SetUp, write: Write
    ) -> None:
        self.runtime, self.write = runtime, write
        self.coming = parts
        self.left = deque[Part]()
        self.again = deque[Part]()
        """Parts of lost workers, last: if it is what ends workers, the others are made first."""
        self.ray = connected(runtime)
        self.packed = self.ray.put(packed(set_up, write, runtime))
        self.folders = folders(write, runtime)
        self.size, options = shares(self.ray.cluster_resources(), runtime)
        self.wants = ", ".join(f"{value:g} {name[4:-1].upper()}" for name, value in options.items())
        self.kind = self.ray.remote(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **options
        )(Worker)
        self.numbers = count()
        self.tasks: dict[Any, Task] = {}
        self.idle: list[Hired] = []
        self.losses = Losses()
        self.machines, self.devices = set[str](), set[str]()
        self.slowest = 0.0
        self.recounted = self.empty_since = self.noted = time.monotonic()

    def facts(self) -> dict[str, Any]:
        """How it was made, for the artifact's facts."""
        device = {"device": " and ".join(sorted(self.devices))} if self.devices else {}
        return {"machines": len(self.machines), "workers_lost": self.losses.workers, **device}

    def made(self) -> Iterator[int]:
        """Rows of each part as it is done."""
        while self.more() or self.working():
            if not stopping.asked():
                self.enlist()
                self.hand_out()
            elif not self.working():
                break
            for part in self.look():
                yield part[1].num_rows
            self.end_leases()
            self.check_alive()
        stopping.check()

    def more(self) -> bool:
        """Whether a part is left; of those to come, as many are taken as there may be workers."""
        wanted = max(1, self.size) - len(self.left)
        self.left.extend(islice(self.coming, max(0, wanted)))
        if not self.left:
            self.left, self.again = self.again, self.left
        return bool(self.left)

    def working(self) -> bool:
        """Whether a part is under way."""
        return any(task.part for task in self.tasks.values())

    def enlist(self) -> None:
        """Start workers until there are as many as there may be, or as can be of use."""
        if time.monotonic() - self.recounted > RECOUNT:
            self.size, _ = shares(self.ray.cluster_resources(), self.runtime)
            self.recounted = time.monotonic()
        beginning = sum(task.part is None for task in self.tasks.values())
        room = self.size - len(self.tasks) - len(self.idle)
        wanted = len(self.left) - len(self.idle) - beginning
        for _ in range(min(room, wanted) if self.losses.rested() else 0):
            worker = Hired(next(self.numbers), self.kind.remote())
            begun = worker.handle.begin.remote(
                __version__, self.folders, self.packed, worker.number
            )
            self.tasks[begun] = Task(worker, None)

    def hand_out(self) -> None:
        while self.left and self.idle:
            worker, part = self.idle.pop(), self.left.popleft()
            self.tasks[worker.handle.work.remote(alone(part))] = Task(worker, part)

    def look(self) -> Iterator[Part]:
        """Parts that were done since the last look; waits a moment where nothing has happened.

        Raises what a maker raised. What was lost goes back to what is left.
        """
        if not self.tasks:  # after losses a new worker waits for a moment
            time.sleep(TICK)
            return
        done, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        if not done:
            done, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=TICK)
        for reference in done:
            task = self.tasks.pop(reference)
            told = self.answer(reference, task)
            if told is None:
                continue
            if told.error is None:
                self.slowest = max(self.slowest, task.seconds if task.part else 0.0)
            elif not (told.passing and task.part and not self.losses.last_try(task.part)):
                raise told.error from There(f"on {told.machine}:\n{told.trace}")
            self.idle.append(task.worker)
            self.losses.stillborn = 0
            if task.part and told.error:
                self.put_back(task.part, task.worker, str(told.error))
            elif task.part:
                self.take(task.part, told)
                yield task.part

    def answer(self, reference: Any, task: Task) -> Told | None:
        """What a worker has to say; None where it is lost."""
        from ray.exceptions import RayError, RayTaskError

        try:
            told: Told = self.ray.get(reference)
        except RayTaskError:  # what runs there answers with errors and raises none
            raise
        except RayError as error:  # the worker, its machine or the way there is gone
            self.lose(task, reason_of(error))
            return None
        task.worker.machine = told.machine
        self.machines.add(told.machine)
        self.devices.add(told.device)
        for line in told.said:
            log.warning("%-10s %s: %s", stopping.doing, told.machine, line)
        return told

    def end_leases(self) -> None:
        """Give up the workers that have had their time."""
        for reference, task in list(self.tasks.items()):
            if task.seconds <= self.lease(task):
                continue
            del self.tasks[reference]
            if task.part:
                self.lose(task, f"not done after {task.seconds:.0f} s (runtime.lease)")
            else:  # most often there is no room for it on the cluster
                self.ray.kill(task.worker.handle)

    def lease(self, task: Task) -> float:
        """Seconds that a worker is given for what it does: more with every try of a part, so that
        one which is slow by nature comes to its end."""
        if task.part is None:
            return self.runtime.lease
        least = max(LEAST_LEASE, 4 * self.slowest) if self.slowest else self.runtime.lease
        return float(least * 2 ** self.losses.tries[task.part[0]])

    def lose(self, task: Task, reason: str) -> None:
        """Give up a worker, and have another make its part."""
        self.ray.kill(task.worker.handle)
        if task.part is None:
            self.losses.before_begin(reason, others=bool(self.idle) or self.working())
            return
        self.losses.workers += 1
        self.put_back(task.part, task.worker, reason)

    def put_back(self, part: Part, worker: Hired, reason: str) -> None:
        self.losses.with_part(part, str(worker), reason)
        self.again.append(part)

    def take(self, part: Part, told: Told) -> None:
        """See that a part is where it belongs; one that came with the answer is put there."""
        if told.made is None:
            self.check_seen(part, told.machine)
            return
        try:
            put(self.write, part[0], told.made)
        except Exception as error:  # rises whole, with what we know
            named(error, part)
            raise

    def check_seen(self, part: Part, machine: str) -> None:
        """Raise UserError where a part that another machine has written is not here."""
        path = self.write.folder / part[0]
        if not appears(path, SHARED):
            raise UserError(
                f"runtime.engine=ray: {machine} has written {path}, which this machine does not "
                f"see after {SHARED:g} s. Name a runtime.folder that all machines share."
            )

    def check_alive(self) -> None:
        """Say that no worker begins; raises UserError where none has for two leases."""
        now = time.monotonic()
        if self.idle or self.working() or stopping.asked():
            self.empty_since = self.noted = now
            return
        if now - self.noted < QUIET:
            return
        self.noted = now
        free = self.ray.available_resources()
        free = ", ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        text = (
            f"no worker has begun for {now - self.empty_since:.0f} s: each wants {self.wants}, "
            f"the cluster has {free} free"
        )
        log.warning("%-10s %s", stopping.doing, text)
        if now - self.empty_since > 2 * self.runtime.lease:
            raise UserError(
                f"runtime.engine=ray: {text}. Use fewer runtime.threads, a longer runtime.lease, "
                f"or another runtime.address."
            )

    def dismiss(self) -> None:
        for worker in [*self.idle, *(task.worker for task in self.tasks.values())]:
            self.ray.kill(worker.handle)
