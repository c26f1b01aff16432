"""A control group within this process's own, with as much memory as a test gives it.

Nothing of the group that this process is in is changed, and the one that is made goes again.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MOUNTS = Path("/proc/self/mounts")
OWN = Path("/proc/self/cgroup")
FIRST, SECOND = "cgroup", "cgroup2"
"""Versions, as they are mounted."""
LIMIT = {FIRST: "memory.limit_in_bytes", SECOND: "memory.max"}
EVENTS = {FIRST: "memory.oom_control", SECOND: "memory.events"}


@dataclass(frozen=True)
class Group:
    place: Path
    version: str

    def limit(self, size: int) -> None:
        """Give it so many bytes."""
        (self.place / LIMIT[self.version]).write_text(str(size))

    @property
    def enter(self) -> str:
        """Python code with which a process joins, and whatever it starts from then on."""
        return f"open({str(self.place / 'cgroup.procs')!r}, 'w').write('0')\n"

    def kills(self) -> int:
        """Processes of it that the kernel has killed for want of memory."""
        lines = (self.place / EVENTS[self.version]).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def own() -> Group:
    """Where this process's memory is counted. Skips the test where that is nowhere."""
    paths = dict(line.split(":", 2)[1:] for line in OWN.read_text().splitlines())
    for line in MOUNTS.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == FIRST and "memory" in options.split(",") and "memory" in paths:
            return Group(Path(place + paths["memory"]), kind)
        if kind == SECOND and "memory" in (Path(place) / "cgroup.controllers").read_text().split():
            return Group(Path(place + paths[""]), kind)
    pytest.skip("no control group counts memory here")


@contextmanager
def group_of(size: int) -> Iterator[Group]:
    """A group with so many bytes. Skips the test where none can be made."""
    ours = own()
    made = Group(ours.place / f"bpo-test-{secrets.token_hex(4)}", ours.version)
    try:
        made.place.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group here: {error}")
    try:
        try:
            made.limit(size)
        except OSError as error:
            pytest.skip(f"no right to limit a control group's memory here: {error}")
        yield made
    finally:
        remove(made.place)


def remove(place: Path) -> None:
    """What has just ended in it may take a moment to leave it."""
    for _ in range(100):
        try:
            os.rmdir(place)
        except OSError:
            time.sleep(0.1)
        else:
            return
    os.rmdir(place)
