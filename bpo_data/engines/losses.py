"""What a cluster loses, how often, and when that is no accident any more."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from bpo_data import stopping
from bpo_data.engines import Part
from bpo_data.errors import UserError, plain, some

TRIES = 5
"""Workers that a part may be lost with before it is taken to be what ends them."""
LONGEST_PAUSE = 60.0
"""Seconds before another worker is started where one after the other was lost."""
REASON = 140
"""Characters of what Ray says of a lost worker that are shown."""

log = logging.getLogger("bpo_data")


class Losses:
    """Of one stage's workers."""

    def __init__(self) -> None:
        self.workers = 0
        """That ended, or were given up, before their work was done."""
        self.stillborn = 0
        """Those in turn that had not even begun."""
        self.last = 0.0
        """When the last of those was lost."""
        self.tries = Counter[str]()
        """How often a part was lost."""

    def last_try(self, part: Part) -> bool:
        return self.tries[part[0]] == TRIES - 1

    def rested(self) -> bool:
        """Whether enough time went by to start another worker: where machines have just gone, the
        cluster may not know it yet; where memory is short, it stays so."""
        pause = min(2.0**self.stillborn, LONGEST_PAUSE) if self.stillborn else 0.0
        return time.monotonic() - self.last >= pause

    def before_begin(self, reason: str, *, others: bool) -> None:
        """A worker was lost while it began. Raises UserError where that goes on, and no ``others``
        are there to do the work."""
        self.workers += 1
        self.stillborn += 1
        self.last = time.monotonic()
        log.warning("%-10s a worker was lost while it began: %s", stopping.doing, reason)
        if self.stillborn >= TRIES and not others:
            raise UserError(
                f"runtime.engine=ray: {some(TRIES, 'worker')} in turn were lost while loading what "
                f"they need, most often for want of memory. Use fewer workers a machine. Ray says: "
                f"{reason}"
            )

    def with_part(self, part: Part, worker: str, reason: str) -> None:
        """A part was not made. Raises UserError where that goes on."""
        name = part[0]
        self.tries[name] += 1
        if self.tries[name] == TRIES:
            raise UserError(
                f"runtime.engine=ray: {some(TRIES, 'worker')} in turn were lost while making "
                f"{name}, most often for want of memory. Use smaller batches or fewer workers a "
                f"machine, and run the same command again: parts that are done are kept. The last "
                f"one: {reason}"
            )
        log.warning("%-10s %s is made anew: %s: %s", stopping.doing, name, worker, reason)


def reason_of(error: Any) -> str:
    """Why a worker was lost, from what Ray says in many lines: the last where its code could not be
    loaded, else the one after the heading and the tabbed list of who it was."""
    lines = [line for line in str(error).splitlines() if line.strip() and line[0] != "\t"]
    line = lines[-1] if getattr(error, "actor_init_failed", False) else "".join(lines[:2][-1:])
    return plain(line or type(error).__name__)[:REASON]
