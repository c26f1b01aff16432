"""Draw by lot among more names than memory holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, islice

HELD = 2**16
"""Lots that are held at once."""
LETTERS = 4
"""Letters of a lot by which it is counted: hexadecimal, 65,536 counts."""


def highest_drawn(lots: Callable[[], Iterable[str]], count: int, held: int = HELD) -> str:
    """The highest of the ``count`` lowest lots: whoever's lot is not above it is drawn.

    It is what ``sorted(lots())[:count][-1]`` is, and empty, below every lot, where nothing is to be
    drawn. All lots are equally long. They are gone through anew for each look, about twice, and
    never held together: first they are counted by how they begin, then those alone are looked at
    that begin like the one sought.
    """
    if count < 1:
        return ""
    start = ""
    while True:
        among = (one for one in lots() if one.startswith(start))
        first = list(islice(among, held + 1))
        if len(first) <= held:
            return max(sorted(first)[:count], default="")
        letters = slice(len(start), len(start) + LETTERS)
        counts = Counter(one[letters] for one in chain(first, among))
        count = min(count, counts.total())
        for next_letters in sorted(counts):
            if count <= counts[next_letters]:
                break
            count -= counts[next_letters]
        if not next_letters:  # more equal lots than are held
            return start
        start += next_letters
