"""The workers of a cluster as the driver knows them, and what they are sent."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpo_data import disk, fetching
from bpo_data.engines import Part, SetUp, Write
from bpo_data.engines.worker import Folders
from bpo_data.mirror import Mirror
from bpo_data.runtime import Runtime


def packed(set_up: SetUp, write: Write, runtime: Runtime) -> bytes:
    """What every worker is sent, pickled. What the set-up reads is in the mirror by then."""
    from ray import cloudpickle  # it knows what a script itself defines, as pickle does not

    reads, mirror = getattr(set_up, "reads", ()), mirror_of(runtime)
    sources = fetching.sources(reads, runtime.folder, mirror) if mirror else {}
    return bytes(cloudpickle.dumps((set_up, write, runtime, trusted(), sources)))


def folders(write: Write, runtime: Runtime) -> Folders:
    """What a worker tells by whether its machine sees the folder of the run."""
    mirror = mirror_of(runtime)
    url = mirror.everywhere if mirror else ""
    return os.getcwd(), Path(runtime.folder).absolute(), disk.token_in(write.folder), url


def mirror_of(runtime: Runtime) -> Mirror | None:
    """What other machines may read from; a Ray that is started here has none."""
    return Mirror(runtime.mirror) if runtime.mirror and runtime.address else None


def trusted() -> dict[str, str]:
    """What whoever started the command allows, for workers too."""
    return {name: value for name, value in os.environ.items() if name.startswith("BPO_TRUSTED_")}


@dataclass(eq=False)
class Hired:
    """A worker as the driver knows it."""

    number: int
    handle: Any
    machine: str = ""
    """Known when it has begun."""

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.machine}" if self.machine else "")


@dataclass
class Task:
    """Something that a worker is doing."""

    worker: Hired
    part: Part | None
    """None while it begins."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class There(Exception):
    """Where on the cluster an error came from: the traceback there, as its cause here."""
