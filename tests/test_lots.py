"""Drawing by lot from a stream is sorting all lots and taking the first."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data import lots
from bpo_data.lots import highest_drawn
from bpo_data.tables import lot

LOTS = st.lists(st.text("0a", min_size=12, max_size=12), max_size=60)
"""Of two letters alone, so that many begin alike and some are equal."""


@settings(max_examples=200)
@given(found=LOTS, count=st.integers(-1, 70), held=st.integers(1, 70))
def test_the_highest_lot_drawn_is_the_last_of_the_first_sorted(found, count, held):
    wanted = sorted(found)[: max(count, 0)]
    assert highest_drawn(lambda: found, count, held) == (wanted[-1] if wanted else "")


@given(
    names=st.sets(st.text("abcdef", min_size=1), max_size=40),
    count=st.integers(0, 45),
    held=st.integers(1, 45),
)
def test_names_not_above_it_are_those_a_seeded_shuffle_puts_first(names, count, held):
    own = {name: lot(3, "split", name) for name in sorted(names)}
    highest = highest_drawn(lambda: own.values(), count, held)
    drawn = {name for name, value in own.items() if value <= highest}
    assert drawn == set(sorted(own, key=own.__getitem__)[:count])


def test_many_lots_are_never_held_together(monkeypatch):
    monkeypatch.setattr(lots, "LETTERS", 1)
    peaks = []
    for count in (2_000, 20_000):

        def stream(count: int = count) -> Iterator[str]:
            return (lot(0, "limit", str(number)) for number in range(count))

        tracemalloc.start()
        highest = highest_drawn(stream, count // 3, held=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(one <= highest for one in stream()) == count // 3
    assert peaks[1] < 1.5 * peaks[0], peaks
