"""What a command starts and leaves on this machine, told from what others run on it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import forking
import pytest

from bpo_data.engines import connecting

MARK = "BPO_TEST_MARK"
"""In the environment of whatever these runs start, their workers and Ray among them."""
GONE_WITHIN = 120.0
"""Seconds after which nothing is left of a command that was killed. A worker that is still loading
torch hears of it when that is done; Ray's agents first tell a head that is gone, for a minute."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of Ray; they make nothing and ask nobody."""


@dataclass
class Marked:
    """What this test's runs leave on the machine."""

    mark: str
    temporary: Path

    def processes(self) -> dict[int, str]:
        """Process -> its words, of those that a run has started, however deep."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if f"{MARK}={self.mark}\0".encode() in (place / "environ").read_bytes():
                    words = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(place.name)] = words.decode(errors="replace")[:200]
        return found

    def wait(self, agents: bool = True) -> float:
        """Wait until all are gone, Ray's agents too where they are to; seconds that took."""
        begun = time.monotonic()
        while left := {
            pid: words
            for pid, words in self.processes().items()
            if agents or not words.startswith(AGENTS)
        }:
            assert time.monotonic() - begun < GONE_WITHIN, left
            time.sleep(0.05)
        return time.monotonic() - begun

    def files(self) -> set[str]:
        """Temporary ones, when the folders of killed Rays went as they do where one starts."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(self.temporary))
            patch.setattr(connecting, "UNLOCKED", 0.0)
            folder, lock = connecting.own_folder()
        shutil.rmtree(folder)
        lock.close()
        return {str(path) for path in self.temporary.rglob("*")}


@contextmanager
def marked() -> Iterator[Marked]:
    """Within, what is started can be told from what others run on this machine."""
    forking.waiting()  # it serves other tests too
    with (
        tempfile.TemporaryDirectory(prefix="k-", dir="/tmp") as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        made = Marked(secrets.token_hex(8), Path(place))
        patch.setenv(MARK, made.mark)
        patch.setenv("TMPDIR", place)  # a short one: sockets of Ray lie in it
        yield made
