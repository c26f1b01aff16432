"""How long ago something was, on machines whose time of day jumps.

A clock that is a year ahead for an hour makes everything look old, and leaves times in the future.
The clock that counts from the machine's start, its sleep included, never jumps
(``clock_gettime(2)``, ``CLOCK_BOOTTIME``): it bounds the age of what was noted since that start.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
STAMP = re.compile(r"(?P<boot>[0-9a-f-]{36}) (?P<seconds>\d+)")


def stamp() -> str:
    """Which start of which machine this is, and the seconds since; empty elsewhere than on Linux,
    where none of that can be read."""
    try:
        boot = BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return f"{boot} {time.clock_gettime(time.CLOCK_BOOTTIME):.0f}"


def age(modified: float, noted: str = "") -> float:
    """Seconds since a file was ``modified``, in seconds since the epoch, at most those since the
    last line of what is ``noted`` was stamped. A time in the future counts as now."""
    seconds = max(0.0, time.time() - modified)
    then = STAMP.fullmatch(noted.strip().rpartition("\n")[2])
    now = STAMP.fullmatch(stamp())
    if then and now and then["boot"] == now["boot"]:
        seconds = min(seconds, max(0.0, float(now["seconds"]) - float(then["seconds"])))
    return seconds
