"""What runs on a Ray cluster: a worker that sets a maker up once, and makes parts with it.

On a machine that sees the folder of the run it reads and writes there. On any other it has what it
reads fetched through ``runtime.mirror``, and its answer brings the part.
"""

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
from typing import TYPE_CHECKING

import pyarrow as pa

from bpo_data import __version__
from bpo_data.engines import Make, Part, Place, SetUp, Write, named, set_up_in_worker
from bpo_data.errors import UserError
from bpo_data.runtime import Runtime, prepare

if TYPE_CHECKING:
    from bpo_data.fetching import Cache, Source

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
    made: pa.Table | None = None
    """A part, where it was not written."""

    @property
    def passing(self) -> bool:
        """Whether the same may work out a little later."""
        return isinstance(self.error, OSError) and self.error.errno in PASSING


Folders = tuple[str, Path, Path, str]
"""Where the command was started, ``runtime.folder``, a token in the folder that parts go to, and
the mirror: what ``sees`` is told, in types that every version can read."""


class Worker:
    """One process on some machine of the cluster."""

    def __init__(self) -> None:
        self.make: Make | None = None
        self.write: Write | None = None
        """None where parts go with the answers."""
        self.cache: Cache | None = None
        """What it reads there stays as long as this process lives."""
        self.said = Said()
        log = logging.getLogger("bpo_data")
        log.addHandler(self.said)
        log.propagate = False

    def begin(self, version: str, folders: Folders, packed: bytes, number: int) -> Told:
        """See whether this machine is fit, and load what is needed.

        ``packed`` holds (SetUp, Write, Runtime, environment, sources), pickled: it can be read
        where versions agree.
        """

        def begin() -> None:
            check_version(version)
            near = sees(*folders)
            set_up: SetUp
            runtime: Runtime
            set_up, write, runtime, environment, sources = pickle.loads(packed)
            os.environ.update(environment)
            prepare(runtime)
            found = {} if near else self.fetched(sources, folders[-1])
            self.write = write if near else None
            self.make = set_up_in_worker(set_up, Place(number, folders=found), runtime.threads)

        return self.told(begin)

    def fetched(self, sources: dict[str, Source], mirror: str) -> dict[str, str]:
        """Where that is which a set-up reads. Raises UserError, with this machine's name."""
        from bpo_data import fetching  # it knows artifacts, which know engines

        self.cache = fetching.own_cache()
        try:
            return fetching.fetched(sources, mirror, self.cache)
        except UserError as error:
            raise UserError(f"runtime.engine=ray: on {socket.gethostname()}, {error}") from error

    def work(self, part: Part) -> Told:
        """Make a part, and write it or answer with it."""

        def work() -> pa.Table | None:
            assert self.make is not None, "begin comes first"
            try:
                made = self.make(part[1])
                if self.write is None:
                    return made
                put(self.write, part[0], made)
            except Exception as error:  # rises whole, with what we know
                named(error, part)
                raise
            return None

        return self.told(work)

    def told(self, do: Callable[[], pa.Table | None]) -> Told:
        error, trace, made = None, "", None
        try:
            made = do()
        except Exception as raised:  # noqa: BLE001  (the driver raises it, whatever it is)
            error, trace = portable(raised), traceback.format_exc()
        return Told(socket.gethostname(), device(), self.said.taken(), error, trace, made)


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


def check_version(version: str) -> None:
    """Raise UserError where this machine has another version of this package."""
    if version != __version__:
        raise UserError(
            f"runtime.engine=ray: {socket.gethostname()} has bpo_data {__version__}, here is "
            f"{version}. Install the same on all machines."
        )


def sees(start: str, runs: Path, token: Path, mirror: str) -> bool:
    """Whether this machine sees the folder in which the command was started, which becomes that of
    this process, and the one that parts go to. Raises UserError where it does not, and there is no
    mirror to do without."""
    patience = SHOWN_WITHIN if not mirror or runs.is_dir() else 0.0
    machine, lacks = socket.gethostname(), f"{start}, where the command was started"
    with suppress(OSError):
        os.chdir(start)
        if appears(token, patience):
            return True
        lacks = f"{token.parents[1]}, where finished parts go"
    if not mirror:
        raise UserError(
            f"runtime.engine=ray: {machine} does not see {lacks}. Start the command in a folder "
            f"that all machines share, with runtime.folder in it, or name in runtime.mirror a URL "
            f"that all of them reach, such as s3://bucket/runs."
        )
    if mirror.startswith("memory:"):
        raise UserError(
            f"runtime.engine=ray: {machine} does not see {lacks}, and runtime.mirror={mirror} is "
            f"in the memory of one process. Name a URL that all machines reach, such as "
            f"s3://bucket/runs."
        )
    return False


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
