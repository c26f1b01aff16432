"""Which prompts are kept and in which split, found from ids on disk, however many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bpo_data import stopping
from bpo_data.components.pooling import IS_RATED, NAME, RATED_MARK, SAID, UNKNOWN, UNSAID, unpacked
from bpo_data.errors import UserError
from bpo_data.lots import highest_drawn
from bpo_data.spill import Spill
from bpo_data.tables import lot

SPLITS = ("seed", "pool", "test")


class Head(NamedTuple):
    """What is known of a prompt before its rows are brought together."""

    name: str
    said: bytes
    """A value of ``pooling.LETTER``; ``UNKNOWN`` where its rows name two splits, or no split."""
    rated: bool


@dataclass(frozen=True)
class Draw:
    """Who is kept and in which split, from the highest lots that were drawn."""

    seed: int
    limit: str | None = None
    """Highest lot of the prompts that are kept; None keeps all."""
    test: str = ""
    """Highest lot of the test split, among the prompts whose split the source leaves open."""
    seeds: str = ""
    """Highest lot of the seed split, whose lots are above those of ``test``."""
    said: bool = False
    """Whether the source names the split of a prompt that is kept."""
    rated: bool = False
    """Whether a prompt that is kept has points by criterion, or reasons."""

    def keeps(self, name: str) -> bool:
        return self.limit is None or self.to_stay(name) <= self.limit

    def split(self, name: str, said: str | None) -> str:
        """The source's own word, else by lot."""
        if said:
            return said
        own = self.to_split(name)
        return "test" if own <= self.test else "seed" if own <= self.seeds else "pool"

    def to_stay(self, name: str) -> str:
        """The lot that a prompt is kept by."""
        return lot(self.seed, "limit", name)

    def to_split(self, name: str) -> str:
        """The lot that its split is drawn by."""
        return lot(self.seed, "split", name)


def draw(
    spill: Spill, path: Path, *, seed: int, limit: int, test_share: float, seed_share: float
) -> Draw:
    """Draw the limit (0: all are kept), and at these shares the splits that the source leaves open.

    What is known of each prompt is kept at ``path`` meanwhile. Raises UserError for a prompt that
    is kept and whose rows name two splits, or one that there is not.
    """
    write_heads(spill, path)
    found = Draw(seed)
    if limit:
        found = replace(found, limit=highest_drawn(partial(_to_stay, found, path), limit))
    open_to = 0
    said = rated = False
    for one in read_heads(path):
        if not found.keeps(one.name):
            continue
        if one.said == UNKNOWN:
            raise UserError(_contradiction(spill, found))
        open_to += one.said == UNSAID
        said = said or one.said != UNSAID
        rated = rated or one.rated

    def lots() -> Iterator[str]:
        for one in read_heads(path):
            if one.said == UNSAID and found.keeps(one.name):
                yield found.to_split(one.name)

    test, seeds = round(test_share * open_to), round(seed_share * open_to)
    return replace(
        found,
        test=highest_drawn(lots, test),
        seeds=highest_drawn(lots, test + seeds) if seeds else "",
        said=said,
        rated=rated,
    )


def _to_stay(found: Draw, path: Path) -> Iterator[str]:
    return (found.to_stay(one.name) for one in read_heads(path))


def write_heads(spill: Spill, path: Path) -> None:
    """What is known of each prompt, a line each."""
    with open(path, "wb") as file:
        for bucket in spill.buckets():
            stopping.check()
            marks: dict[bytes, bytes] = {}
            for line in bucket:
                name, own = line[NAME], line[SAID] + line[IS_RATED]
                before = marks.setdefault(name, own)
                if before != own:
                    marks[name] = _both(before[:1], own[:1]) + max(before[1:], own[1:])
            file.writelines(b"%b%b\n" % one for one in marks.items())


def _both(said: bytes, more: bytes) -> bytes:
    if said == UNSAID:
        return more
    return said if more in (said, UNSAID) else UNKNOWN


def read_heads(path: Path) -> Iterator[Head]:
    with open(path, "rb") as file:
        for line in file:
            yield Head(line[NAME].decode(), line[SAID], line[IS_RATED] == RATED_MARK)


def _contradiction(spill: Spill, found: Draw) -> str:
    """What is wrong with the first prompt whose rows name no one split: the first that the source
    has, or that the limit draws."""
    first: tuple[str | int, str, list[str]] | None = None
    for bucket in spill.buckets():
        splits: dict[bytes, set[str]] = {}
        begun: dict[bytes, tuple[int, str]] = {}
        for line in bucket:
            row = unpacked(line)
            begun.setdefault(line[NAME], (row.number, row.origin))
            splits.setdefault(line[NAME], set()).update([row.split] if row.split else [])
        for key, own in splits.items():
            name = key.decode()
            if found.keeps(name) and (len(own) > 1 or own - set(SPLITS)):
                number, origin = begun[key]
                place: str | int = number if found.limit is None else found.to_stay(name)
                first = min(first or (place, origin, sorted(own)), (place, origin, sorted(own)))
    assert first
    _, origin, words = first
    return (
        f"{origin}: split {', '.join(words)} of one prompt; it must be one of "
        f"{', '.join(SPLITS)}. Name another column with load.columns.split."
    )
