"""How much a file may come to: what is packed small can unpack to more than any machine holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpo_data.components.reading.faults import FileRejected

MAX_LINE = 64 * 2**20
"""Bytes of one row; a longer line is rejected and never held whole."""
MAX_ARRAY = 2**30
"""Bytes of a JSON array, unpacked: the one layout that is held in memory."""
MAX_VALUES = 1_000_000
"""Values in one row, those inside one another counted: each takes memory beside its letters."""
MAX_COLUMNS = 100_000
"""Different names of columns in one file."""
TIMES, LEAST, MOST = 100, 2**28, 2**37
"""What a packed file may come to unless the user says so: a hundred times its size (text packs to
a fifth, seldom to a twentieth), not less than 256 MiB and not more than 128 GiB."""
EACH_ROW, EACH_VALUE = 512, 64
"""Bytes that a row, and a value in it, count for beside their letters."""
AT_ONCE = 2**31
"""Bytes of memory that a batch of Parquet rows may take while it is unpacked."""


class Unpacked:
    """What a packed file has come to so far."""

    def __init__(self, path: Path, gigabytes: float) -> None:
        self.path = path
        size = path.stat().st_size
        self.most = int(gigabytes * 1e9) or min(max(LEAST, TIMES * size), MOST)
        self.size = 0

    def add(self, size: int) -> None:
        """Count more bytes. Raises FileRejected when they are too many."""
        self.size += size
        self.check(self.size)

    def check(self, size: int) -> None:
        """Raises FileRejected when so many bytes are too many."""
        if size > self.most:
            raise FileRejected(
                self.path,
                "too_large",
                f"its {self.path.stat().st_size:,} bytes unpack to more than {self.most:,}. If "
                f"that is as it should be, set load.options.unpacked_gb to the gigabytes it may "
                f"come to; else leave the file out.",
            )


def weight(value: Any) -> int:
    """About how many bytes a value takes, all that is inside it included."""
    size, inside = 0, [value]
    while inside:
        one = inside.pop()
        size += EACH_VALUE
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, dict):
            inside += one.values()
        elif isinstance(one, list | tuple):
            inside += one
    return size


@contextmanager
def memory(size: int) -> Iterator[None]:
    """Within, taking more than ``size`` bytes beyond what this process has raises MemoryError.

    A file can lie about what is in it, and the library that unpacks it has no bound of its own.
    Elsewhere than on Linux there is none.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * os.sysconf("SC_PAGE_SIZE") + size
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
