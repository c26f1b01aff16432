"""What runs on a Ray cluster: a worker that sets a maker up once, and makes parts with it."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from bpo_data import __version__
from bpo_data.engines import Make, Part, SetUp, Write, named, set_up_in_worker
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime, prepare

PASSING = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
"""Faults that a shared folder may get over by itself."""
PATIENCE = 20.0
"""Seconds that a worker goes on trying to write a part to a folder with such a fault."""
PAUSE = 1.0
"""Seconds between two such tries."""
SHOWN_WITHIN = 10.0
"""Seconds after which a network file system shows what another machine wrote."""


@dataclass(frozen=True)
class Told:
    """What a worker answers. Errors come as values: Ray would lose the type of some, and takes one
    that it cannot unpickle for a lost worker."""

    machine: str
    device: str
    """Its GPU's name, or ``cpu``."""
    said: tuple[str, ...] = ()
    """Warnings of our own code, which would end in a log of Ray's."""
    error: Exception | None = None
    trace: str = ""
    """Where ``error`` came from."""

    @property
    def passing(self) -> bool:
        """Whether the same may work out a little later."""
        return isinstance(self.error, OSError) and self.error.errno in PASSING


class Worker:
    """One process on some machine of the cluster."""

    def __init__(self) -> None:
        self.make: Make | None = None
        self.write: Write | None = None
        self.said = Said()
        log = logging.getLogger("bpo_data")
        log.addHandler(self.said)
        log.propagate = False

    def begin(self, version: str, folder: str, token: Path, packed: bytes, number: int) -> Told:
        """See whether this machine is fit, and load what is needed.

        ``packed`` holds (SetUp, Write, Runtime, environment), pickled: it can be read where
        versions agree.
        """

        def begin() -> None:
            check_machine(version, folder, token)
            set_up: SetUp
            runtime: Runtime
            set_up, self.write, runtime, environment = pickle.loads(packed)
            os.environ.update(environment)
            prepare(runtime)
            self.make = set_up_in_worker(set_up, number, runtime.threads)

        return self.told(begin)

    def work(self, part: Part) -> Told:
        """Make a part and write it."""

        def work() -> None:
            assert self.make is not None, "begin comes first"
            assert self.write is not None, "begin comes first"
            try:
                put(self.write, part[0], self.make(part[1]))
            except Exception as error:  # rises whole, with what we know
                named(error, part)
                raise

        return self.told(work)

    def told(self, do: Callable[[], None]) -> Told:
        error, trace = None, ""
        try:
            do()
        except Exception as raised:  # noqa: BLE001  (the driver raises it, whatever it is)
            error, trace = portable(raised), traceback.format_exc()
        return Told(socket.gethostname(), device(), self.said.taken(), error, trace)


class Said(logging.Handler):
    """Keeps what is said until it is taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def taken(self) -> tuple[str, ...]:
        lines, self.lines = tuple(self.lines), []
        return lines


def check_machine(version: str, folder: str, token: Path) -> None:
    """Raise UserError where a worker on this machine would do harm: with another version of this
    package, or without the folder that the parts go to."""
    machine = socket.gethostname()
    if version != __version__:
        raise UserError(
            f"runtime.engine=ray: {machine} has bpo_data {__version__}, here is {version}. "
            f"Install the same on all machines."
        )
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"runtime.engine=ray: {machine} does not see {folder}, where the command was started. "
            f"Start it in a folder that all machines share."
        ) from error
    if not appears(token, SHOWN_WITHIN):
        raise UserError(
            f"runtime.engine=ray: {machine} does not see {token.parents[1]}, where finished parts "
            f"go. Name a runtime.folder that all machines share."
        )


def appears(path: Path, seconds: float) -> bool:
    """Whether a file is there or comes to be; to list its folders hastens a network file system."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        for folder in (path.parents[1], path.parent):
            with suppress(OSError):
                os.listdir(folder)
        time.sleep(0.1)
    return True


def put(write: Write, name: str, table: pa.Table) -> None:
    """Write a part, patiently where the folder has a fault that may pass."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            write(name, table)
            return
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() > end:
                raise
        time.sleep(PAUSE)


def portable(error: Exception) -> Exception:
    """The error, or its words where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (whatever an error's own code raises when it is pickled)
        words = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            words.add_note(note)
        return words
    return error


def device() -> str:
    """What torch works on here, if it does."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return "cpu"
    return str(torch.cuda.get_device_name())
