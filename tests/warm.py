"""Runs of the command line that cost no imports, each with code of its own to begin with."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from forking import Forked, fork
from helpers import environment

START = """
import os, sys
for number, path in ((1, sys.argv[1]), (2, sys.argv[2])):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
for name in [one for one in sys.modules if one.partition(".")[0] == "bpo_data"]:
    del sys.modules[name]  # our own anew: they hold what belongs to a process, such as its name
from bpo_data.pipelines.run import main
from bpo_data.stages import augment, cluster, gradients
augment.PART_ROWS = gradients.PART_ROWS = cluster.PART_ROWS = 24  # several parts of few rows
{first}
sys.exit(main(sys.argv[3:]))
"""


@dataclass
class Ended:
    """A run that is over."""

    status: int
    """Exit status; below 0 the signal that ended it."""
    out: str
    err: str
    seconds: float


@dataclass
class Started:
    """A run under way, whose words can be read before it ends."""

    process: Forked
    words: tuple[Path, Path]
    """Files with what it writes to stdout and stderr."""
    begun: float = field(default_factory=time.monotonic)

    def saw(self, words: str, count: int = 1, seconds: float = math.inf) -> bool:
        """Wait until stderr has ``words`` so often; False when the run ended, or the time was up,
        before it did."""
        end = time.monotonic() + seconds
        while True:
            over = self.gone() or time.monotonic() > end
            if self.words[1].read_text(errors="replace").count(words) >= count:
                return True
            if over:
                return False
            time.sleep(0.001)

    def gone(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end_group(self) -> None:
        """Kill it and all that it started in its group, at once; it has a session of its own."""
        with suppress(ProcessLookupError):  # all are gone
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        with self.process:
            status = self.process.wait(timeout=300)
        out, err = (path.read_text(errors="replace") for path in self.words)
        return Ended(status, out, err, time.monotonic() - self.begun)


@dataclass
class Forks:
    """``Forks(folder).run("stage=load", ...)``: the measuring stages work in parts of few rows.

    ``first`` is Python code that a run begins with.
    """

    folder: Path
    """For what the runs write to their streams."""
    number: int = 0

    def start(self, *arguments: str, first: str = "", session: bool = False) -> Started:
        self.number += 1
        words = tuple(self.folder / f"{name}.{self.number}" for name in ("out", "err"))
        for path in words:
            path.write_text("")
        code = START.replace("{first}", first)
        asked = ["-c", code, *map(str, words), *arguments]
        place = environment() | {"NO_PROXY": "127.0.0.1"}
        process = fork(asked, place, start_new_session=session)
        return Started(process, (words[0], words[1]))

    def run(self, *arguments: str, first: str = "") -> Ended:
        return self.start(*arguments, first=first).wait()
