"""One training in several processes that share each batch, as accelerate finds them.

Every rank runs the same code on its share of the rows; torch.distributed sums their gradients.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from bpo_data import stopping
from bpo_data.engines.processes import end_children, end_with_parent
from bpo_data.errors import UserError
from bpo_data.runtime import keep_freed_memory, quiet_libraries

Work = Callable[[int], None]
"""What a rank does, given its number; picklable."""


def together(count: int, work: Work) -> None:
    """Run ``work`` in ``count`` processes and wait for all of them.

    Raises the first error of any, after which the others are ended: they would wait for it for
    ever. Asked to stop, each rank is told, and KeyboardInterrupt is raised when all have ended.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    ranks: list[Any] = []
    ends: dict[Any, Any] = {}
    for number in range(count):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(number, count, port, work, theirs))
        process.start()
        theirs.close()
        ranks.append(process)
        ends[mine] = process
    try:
        with stopping.told(lambda: stopping.pass_on(ranks)):
            while ends:
                for end in connection.wait(list(ends)):
                    answer = answer_of(end)
                    process = ends.pop(end)
                    if answer is None and not stopping.asked():
                        raise UserError(
                            "train: a process of the training was killed, most often for want of "
                            "memory. Lower train.processes, or raise train.accumulate, and run "
                            "the same command again."
                        )
                    if isinstance(answer, Exception):
                        raise answer
                    process.join()
        stopping.check()
    finally:
        if any(process.is_alive() for process in ranks):
            end_children()
        for process in ranks:
            process.join()


def answer_of(end: Any) -> Any:
    """What a rank said last: "done", "stopped", its error; None where it was killed."""
    try:
        return end.recv()
    except EOFError:
        return None


def _rank(number: int, count: int, port: int, work: Work, end: Any) -> None:
    end_with_parent()
    stopping.follow()
    keep_freed_memory()
    quiet_libraries()
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    answer: Any = "done"
    try:
        work(number)
    except KeyboardInterrupt:
        answer = "stopped"
    except Exception as error:  # noqa: BLE001  (the process that waits raises it)
        answer = carried(error)
    if answer == "done":
        leave()
    end.send(answer)
    end.close()
    if answer != "done":
        os._exit(0)  # in an orderly way it would wait for those that were ended


def leave() -> None:
    """Take leave of the other ranks, all of which have done their work."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def carried(error: Exception) -> Exception:
    """The error, or its words where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (whatever an error's own way of travelling raises)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
