"""Lines on disk come back key by key, as if they had been held."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.spill import EACH, KEY, Spill

KEYS = st.text("0a", min_size=3, max_size=3).map(lambda start: f"{start:0<{KEY}}")
LINES = st.lists(st.tuples(KEYS, st.integers(0, 300)), max_size=80)


def line(key: str, number: int, letters: int) -> bytes:
    return f"{key} {number} {'x' * letters}\n".encode()


@settings(max_examples=100, deadline=None)
@given(made=LINES, held=st.integers(0, 3000), largest=st.integers(0, 2000))
def test_all_lines_of_a_key_come_back_together_in_the_order_they_came(
    tmp_path_factory, made, held, largest
):
    folder = tmp_path_factory.mktemp("spill")
    spill = Spill(folder / "rows", held, largest)
    lines = [line(key, number, letters) for number, (key, letters) in enumerate(made)]
    for one in lines:
        spill.add(one)
    buckets = [list(bucket) for bucket in spill.buckets()]
    assert all(buckets)
    keys = [{one[:KEY] for one in bucket} for bucket in buckets]
    assert [one for bucket in buckets for one in sorted(bucket, key=lambda one: one[:KEY])] == (
        sorted(lines, key=lambda one: one[:KEY])
    )
    assert all(max(low) < min(high) for low, high in pairwise(keys))
    for bucket, own in zip(buckets, keys, strict=True):
        assert sum(map(len, bucket)) <= largest or len(own) == 1
    assert [list(bucket) for bucket in spill.buckets()] == buckets, "again and again"
    on_disk = [path for path in folder.rglob("*") if path.is_file()]
    if sum(len(one) + EACH for one in lines) <= held and len(buckets) == len(spill.by_start):
        assert not on_disk, "few lines touch no disk"


def test_what_is_on_disk_is_less_than_the_lines_and_in_one_file_a_bucket(tmp_path: Path) -> None:
    spill = Spill(tmp_path, held=10_000, largest=20_000)
    lines = [line(f"{n % 7:0{KEY}x}"[::-1], n, 50) for n in range(2000)]
    for one in lines:
        spill.add(one)
    assert sum(1 for bucket in spill.buckets() for _ in bucket) == len(lines)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < sum(map(len, lines)) / 2
    assert len(files) == 7
