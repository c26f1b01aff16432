"""Lines by the key they begin with, put on disk where they are many, read back key by key."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow as pa

HELD = 2**23
"""Bytes of lines that are held before they go to disk."""
LARGEST = 2**22
"""Bytes of lines that come back together, where their keys differ."""
EACH = 64
"""Bytes that a line takes in memory beside its letters."""
KEY = 16
"""Letters of a key, hexadecimal."""
FIRST, FURTHER = 2, 1
"""Letters of the key by which lines are parted, and those by which what is too large still is:
256 files, then 16 of each, so that all files grow together and none is opened for a few lines."""
SIZES = struct.Struct("<QQ")
"""Before lines on disk: their bytes there, and in memory."""


@cache
def codec() -> pa.Codec:
    """Quick rather than thorough: rows of texts come to less than half."""
    return pa.Codec("zstd", compression_level=1)


class Bucket:
    """The lines whose keys begin alike, in the order they came."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.held: list[bytes] = []
        self.size = 0
        self.on_disk = False
        self.key = b""
        self.mixed = False
        """Whether there are two keys or more."""
        self.parted: Spill | None = None

    def __iter__(self) -> Iterator[bytes]:
        if self.on_disk:
            with open(self.place, "rb") as file:
                while sizes := file.read(SIZES.size):
                    packed, size = SIZES.unpack(sizes)
                    lines = codec().decompress(file.read(packed), size, asbytes=True)
                    yield from BytesIO(lines)
        yield from self.held

    def put_on_disk(self) -> None:
        lines = b"".join(self.held)
        packed = codec().compress(lines, asbytes=True)
        with open(self.place, "ab") as file:
            file.write(SIZES.pack(len(packed), len(lines)) + packed)
        self.held = []
        self.on_disk = True


class Spill:
    """Any number of lines in memory that does not grow with them.

    A line begins with its key and ends with its only line end. All lines of a key come back
    together, keys that begin alike too, in the order of their beginnings.
    """

    def __init__(
        self, folder: Path, held: int = HELD, largest: int = LARGEST, start: int = 0
    ) -> None:
        self.folder = folder
        self.most_held, self.largest = held, largest
        self.start, self.end = start, start + (FURTHER if start else FIRST)
        self.by_start: dict[bytes, Bucket] = {}
        self.held = 0

    def add(self, line: bytes) -> None:
        """Keep a line."""
        start = line[self.start : self.end]
        bucket = self.by_start.get(start)
        if bucket is None:
            bucket = self.by_start[start] = Bucket(self.folder / start.decode())
            bucket.key = line[:KEY]
        bucket.held.append(line)
        bucket.size += len(line)
        bucket.mixed = bucket.mixed or line[:KEY] != bucket.key
        self.held += len(line) + EACH
        if self.held > self.most_held:
            self.put_on_disk()

    def put_on_disk(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for bucket in self.by_start.values():
            if bucket.held:
                bucket.put_on_disk()
        self.held = 0

    def buckets(self) -> Iterator[Bucket]:
        """The lines in lots of at most ``largest`` bytes, or of a single key; again and again."""
        if any(bucket.on_disk for bucket in self.by_start.values()):
            self.put_on_disk()  # what is read takes the room
        for start in sorted(self.by_start):
            bucket = self.by_start[start]
            if bucket.parted is None and bucket.size > self.largest and bucket.mixed:
                self.part(bucket)
            if bucket.parted is None:
                yield bucket
            else:
                yield from bucket.parted.buckets()

    def part(self, bucket: Bucket) -> None:
        """Part the lines of a bucket by the next letters of their keys."""
        folder = bucket.place.with_name(f"{bucket.place.name}-parted")
        bucket.parted = Spill(folder, self.most_held, self.largest, self.end)
        for line in bucket:
            bucket.parted.add(line)
        bucket.parted.put_on_disk()
        bucket.held = []
        if bucket.on_disk:
            bucket.place.unlink()
