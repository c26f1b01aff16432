"""Parts made by several processes on one machine: one for each GPU, or for a share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import chain, islice
from multiprocessing import connection
from typing import Any

from bpo_data import stopping
from bpo_data.engines import Make, Part, Place, SetUp, Write, alone, named, set_up_in_worker
from bpo_data.engines.lines import Lines
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime, keep_freed_memory, quiet_libraries


class Processes:
    """``count`` processes, each with its own copy of whatever ``set_up`` loads.

    They are spawned, never forked: after torch or FAISS has used threads, a forked child hangs.
    ``set_up`` and ``write`` must be picklable.
    """

    here = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @cached_property
    def count(self) -> int:
        return self.runtime.process_count()

    @property
    def facts(self) -> dict[str, Any]:
        return {"engine": "processes", "processes": self.count}

    def check(self) -> None:
        """This machine can be counted on."""

    def each(
        self, parts: Iterable[Part], set_up: SetUp, write: Write, progress: Any
    ) -> Iterator[int]:
        left = iter(parts)
        first = list(islice(left, self.count))
        count = len(first)
        if not count:
            return
        left = chain(first, left)
        del first
        context = multiprocessing.get_context("spawn")
        numbers: Any = context.SimpleQueue()
        for number in range(count):
            numbers.put(number)
        begin = set_up, numbers, self.runtime.threads
        pool = ProcessPoolExecutor(count, context, _begin, begin)
        under_way: dict[Future[None], int] = {}
        try:
            while True:
                # No more than there are workers: what waits in the pool is begun in any case.
                for part in islice(left, 0 if stopping.asked() else count - len(under_way)):
                    under_way[pool.submit(_make, alone(part), write)] = part[1].num_rows
                if not under_way:
                    break
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    done.result()
                    yield under_way.pop(done)
            stopping.check()
        except BrokenProcessPool as error:
            stopping.check()
            raise UserError(
                "a worker process was killed, most often for want of memory. Use fewer of them "
                "(runtime.processes) or smaller batches, and run the same command again: parts "
                "that are done are kept."
            ) from error
        except KeyboardInterrupt:
            if stopping.at_once():
                end_children()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def lines(self, here: bool) -> Lines:
        from bpo_data.engines.process_lines import ProcessLines  # which imports this module

        return ProcessLines(self.runtime)


_making: list[Make] = []
_begun: list[tuple[SetUp, Place, int]] = []


def end_with_parent() -> None:
    """End this process as soon as the one that made it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is for processes that another one made"
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def end_children() -> None:
    """End the processes that this one made; what they were writing is not taken for done."""
    for child in multiprocessing.active_children():
        child.kill()


def _begin(set_up: SetUp, numbers: Any, threads: int) -> None:
    end_with_parent()
    keep_freed_memory()
    quiet_libraries()
    stopping.deafen()  # what is sent to the whole group is the parent's to judge
    _begun.append((set_up, Place(numbers.get()), threads))


def _make(part: Part, write: Write) -> None:
    if not _making:  # here and not in _begin, whose errors would not reach the caller
        _making.append(set_up_in_worker(*_begun[-1]))
    try:
        write(part[0], _making[-1](part[1]))
    except Exception as error:  # rises whole, with what we know
        named(error, part)
        raise
