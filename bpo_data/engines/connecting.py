"""Ray itself: found by its address or started on this machine, quiet, and gone with the run."""

from __future__ import annotations

import atexit
import fcntl
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bpo_data import ages, stopping
from bpo_data.errors import UserError, plain
from bpo_data.runtime import Runtime

PREFIX, LOCK = "bpo-ray-", "in-use"
"""Names of the folder of a Ray that is started here, and of the file in it that is locked."""
UNLOCKED = 60.0
"""Seconds after which a folder that has no lock will not get one any more."""
ANSWER = 10.0
"""Seconds that a cluster's head is given to take a connection."""


def connected(runtime: Runtime) -> Any:
    """Ray, with the cluster that ``runtime.address`` names, or one on this machine.

    One that is started here is ended with this process, and the folder of its logs goes; until
    then every stage uses it. Raises UserError where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    try:
        if runtime.address:
            check_answers(runtime.address)
            init(ray, address=runtime.address)
        else:
            start(ray, runtime)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"runtime.address={runtime.address} is no Ray cluster that answers"
        if not runtime.address:
            where = "runtime.engine=ray: no Ray could be started on this machine"
        raise UserError(f"{where}: {plain(str(error))[:300]}") from error
    finally:
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)
    atexit.register(leave, ray)
    return ray


def leave(ray: Any) -> None:
    """Left with the process. A second Ctrl-C within would end in an assertion of Ray's."""
    stopping.deafen()
    ray.shutdown()


def init(ray: Any, **where: Any) -> None:
    """Ray, saying nothing: of a lost worker it would tell a long story on stdout, where results
    are, whatever its settings; it has a function of its own for that."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *args, **options: None
    ray.init(
        configure_logging=True,
        logging_level=logging.ERROR,
        log_to_driver=False,
        **where,
    )


def start(ray: Any, runtime: Runtime) -> None:
    """A cluster of this machine alone, which takes orders from nobody else: its ports are open to
    the network, so it wants a token, which Ray would keep in a file of the user's."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder, lock = own_folder()

    def clear() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()

    atexit.register(clear)
    init(
        ray,
        address="local",
        include_dashboard=False,
        num_cpus=runtime.process_count() * runtime.threads,
        _temp_dir=str(folder),
    )


def own_folder() -> tuple[Path, IO[str]]:
    """(a new folder for Ray's sockets and logs, the lock that tells it is in use); folders of
    processes that were killed go.

    Ray's agents outlive its head by a minute, and may write to a folder while it goes: what was
    left of it then has no lock.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            made_now = ages.age(old.stat().st_mtime) < UNLOCKED
            with open(old / LOCK, "r" if made_now else "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = open(folder / LOCK, "w")  # noqa: SIM115  (held until the process ends)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def check_answers(address: str) -> None:
    """Raise OSError where nobody takes a connection: Ray would try for minutes, then end this
    process. ``auto`` is looked for by Ray itself."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()


def shares(resources: dict[str, float], runtime: Runtime) -> tuple[int, dict[str, float]]:
    """(workers, what each takes of the cluster): a GPU each as far as they go round."""
    gpus = 0.0 if runtime.device == "cpu" else resources.get("GPU", 0.0)
    if runtime.device == "cuda":  # a cluster that grows may have none yet
        gpus = max(gpus, 1.0)
    cores = int(resources.get("CPU", 0.0) // runtime.threads)
    count = runtime.processes or max(1, int(gpus) or cores)
    options = {"num_cpus": float(runtime.threads)}
    if gpus:
        options["num_gpus"] = math.floor(100 / math.ceil(count / gpus)) / 100
    return count, options
