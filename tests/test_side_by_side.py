"""Tables read side by side: the same rows as in the tables, of the same prompts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data import medians, side_by_side
from bpo_data.components.exporters import shuffling
from bpo_data.components.exporters.dataset import draw
from bpo_data.components.exporters.shuffling import Shuffled
from bpo_data.medians import Median
from bpo_data.side_by_side import side_by_side as read
from bpo_data.tables import lot

NAMES = st.lists(st.integers(0, 30), max_size=60).map(sorted)


def table(key: str, owners: list[int]) -> pa.Table:
    """Rows of prompts, numbered; ids begin with the prompt's."""
    rest = "" if key == "prompt_id" else "/x"
    ids = [f"{one:04d}{rest}" for one in owners]
    return pa.table({key: pa.array(ids, pa.string()), "row": range(len(owners))})


def cut(rows: pa.Table, size: int) -> list[pa.Table]:
    return [rows.slice(start, size) for start in range(0, rows.num_rows, size)]


@settings(deadline=None)
@given(
    first=NAMES.filter(bool), second=NAMES.filter(bool), third=NAMES.filter(bool),
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    prompts=st.integers(1, 6), most=st.integers(1, 20),
)  # fmt: skip
def test_every_row_of_the_first_tables_prompts_comes_once_with_its_own(
    first, second, third, sizes, prompts, most
):
    tables = {
        "first": table("prompt_id", first),
        "second": table("response_id", second),
        "third": table("pair_id", third),
    }
    given_cuts = {
        name: cut(rows, size) for (name, rows), size in zip(tables.items(), sizes, strict=True)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "PROMPTS", prompts)
        patch.setattr(side_by_side, "ROWS", most)
        found = list(read(given_cuts))
        again = list(read({name: cut(rows, 3) for name, rows in tables.items()}))
    assert [one["first"] for one in again] == [one["first"] for one in found]
    wanted = set(first)
    for name, owners in {"first": first, "second": second, "third": third}.items():
        places = [place for one in found for place in one[name]["row"].to_pylist()]
        assert places == [place for place, own in enumerate(owners) if own in wanted]
    for one in found:
        own = side_by_side.owners(one["first"]).to_pylist()
        assert 1 <= len(set(own)) <= prompts
        assert len([name for name in own if name != own[-1]]) < most, "it was full before the last"
        for name in ("second", "third"):
            assert set(side_by_side.owners(one[name]).to_pylist()) <= set(own)


@given(owners=NAMES.filter(lambda own: len(set(own)) > 1), data=st.data())
def test_rows_out_of_order_are_found_wherever_they_stand(owners, data):
    swapped = list(owners)
    place = data.draw(
        st.sampled_from([n for n in range(1, len(owners)) if owners[n - 1] < owners[n]])
    )
    swapped[place - 1 : place + 1] = [owners[place], owners[place - 1]]
    first = table("prompt_id", owners[:1])
    with pytest.raises(AssertionError, match="second is not sorted"):
        list(read({"first": [first], "second": cut(table("response_id", swapped), 4)}))


@settings(deadline=None)
@given(
    numbers=st.lists(st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1.0])), min_size=1),
    held=st.integers(1, 20),
    folder=st.booleans(),
)
def test_the_median_on_disk_is_that_of_numpy(tmp_path_factory, numbers, held, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medians, "HELD", held)
        median = Median(tmp_path_factory.getbasetemp() if folder else None)
        for start in range(0, len(numbers), 3):
            median.add(np.array(numbers[start : start + 3]))
        assert median.value() == np.median(numbers)


@given(keys=st.lists(st.sampled_from("abcdef")), held=st.integers(1, 9), block=st.integers(1, 4))
def test_what_is_shuffled_on_disk_comes_in_the_order_of_its_keys(
    tmp_path_factory, keys, held, block
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffling, "HELD", held)
        patch.setattr(shuffling, "BLOCK", block)
        shuffled = Shuffled(tmp_path_factory.getbasetemp())
        for place, key in enumerate(keys):
            shuffled.add(key, {"place": place})
        found = [one["place"] for one in shuffled]
    assert found == sorted(range(len(keys)), key=lambda place: keys[place])


@given(
    prompts=st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=20),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    size=st.integers(1, 7),
)
def test_the_split_is_that_of_all_prompts_sorted_by_lot(prompts, share, size):
    rows = [(f"{n:016x}", kept) for n, own in enumerate(prompts) for kept in own]
    allocation = pa.table({"prompt_id": [n for n, _ in rows], "kept": [k for _, k in rows]})
    found = draw(lambda: cut(allocation, size), share, 7)
    names = [name for name, kept in rows if kept]
    assert (found.prompts, found.pairs) == (len(set(names)), len(names))
    order = sorted(set(names), key=lambda name: lot(7, "export", name))
    test = set(order[: round(share * len(order))])
    assert found.splits(names) == ["test" if name in test else "train" for name in names]
