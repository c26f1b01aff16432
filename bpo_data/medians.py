"""The median of more numbers than memory holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HELD = 2**16
"""Numbers that are held at once; more wait in a file."""
BITS = 16
"""Bits of a number by which it is counted at a time: 65,536 counts."""


class Median:
    """Of numbers from 0 up, exactly as ``numpy.median`` has it.

    The numbers wait in a file without a name in ``folder``, which goes with the process; in memory
    where there is none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.count = 0
        held = 8 * HELD if folder else 0  # 0 puts nothing on disk
        self.file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (open as long as this is)
            held, dir=str(folder) if folder else None
        )

    def add(self, numbers: np.ndarray) -> None:
        """(n,) float64, n from 0 up."""
        self.count += len(numbers)
        self.file.write(np.asarray(numbers, np.float64).tobytes())

    def value(self) -> float:
        """The number in the middle, or the mean of the two there; there are some."""
        low, high = (self.at(place) for place in ((self.count - 1) // 2, self.count // 2))
        return (low + high) / 2

    def at(self, place: int) -> float:
        """The number that stands at ``place``, from 0, when all are sorted.

        Bits of numbers from 0 up are in the order of the numbers. They are counted by their highest
        bits, then among those that begin like the one sought by the next ones, until few are left.
        """
        start = known = 0
        while known < 64:
            counts = np.zeros(2**BITS, np.int64)
            few, held = 0, list[np.ndarray]()
            for bits in self.blocks():
                own = bits[bits >> np.uint64(64 - known) == np.uint64(start)] if known else bits
                few += len(own)
                held = [*held, own] if few <= HELD else []
                further = own >> np.uint64(64 - known - BITS) & np.uint64(2**BITS - 1)
                counts += np.bincount(further.astype(np.int64), minlength=2**BITS)
            if few <= HELD:
                return float(np.sort(np.concatenate(held))[place].view(np.float64))
            found = int(np.searchsorted(np.cumsum(counts), place, side="right"))
            place -= int(counts[:found].sum())
            start, known = start << BITS | found, known + BITS
        return float(np.uint64(start).view(np.float64))  # more equal numbers than are held

    def blocks(self) -> Iterator[np.ndarray]:
        """The bits of the numbers, uint64, some at a time."""
        self.file.seek(0)
        while block := self.file.read(8 * HELD):
            yield np.frombuffer(block, np.uint64)
