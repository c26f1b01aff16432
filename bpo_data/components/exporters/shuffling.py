"""Rows in an order drawn by lot, more of them than memory holds."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from typing import Any

HELD = 8192
"""Rows that are held before they go to disk, sorted."""
BLOCK = 8
"""Rows of a sorted run that are read at once."""


class Shuffled:
    """Gives back what it was given in the order of the keys, equal ones as they came.

    More than ``HELD`` rows wait in a file without a name in ``folder``, which goes with the
    process, and are merged from sorted runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: list[tuple[str, Any]] = []
        self.runs: list[list[int]] = []
        """Where the blocks of each run begin in the file."""
        self.file: Any = None

    def add(self, key: str, value: Any) -> None:
        self.held.append((key, value))
        if len(self.held) >= HELD:
            self.put_on_disk()

    def put_on_disk(self) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (open as this is)
        self.held.sort(key=key_of)
        self.runs.append([])
        for start in range(0, len(self.held), BLOCK):
            self.runs[-1].append(self.file.tell())
            pickle.dump(self.held[start : start + BLOCK], self.file)
        self.held = []

    def __iter__(self) -> Iterator[Any]:
        last = sorted(self.held, key=key_of)
        for _, value in merge(*map(self.read, self.runs), last, key=key_of):
            yield value

    def read(self, run: list[int]) -> Iterator[tuple[str, Any]]:
        for start in run:
            self.file.seek(start)
            yield from pickle.load(self.file)  # what this very process has written


def key_of(one: tuple[str, Any]) -> str:
    return one[0]
