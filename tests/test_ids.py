"""Ids that are many wait on disk, and judge rows as those in memory do."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.components.reading import Bad, ids
from bpo_data.components.reading.ids import Ids
from bpo_data.components.rows import Given

ROWS = st.lists(
    st.tuples(
        st.sampled_from([None, "a", "b", "c", "d", "e"]),
        st.sampled_from("pq"),
        st.sampled_from("xyz"),
        st.booleans(),
    ),
    max_size=40,
)


def judged(found: Ids, rows: list[tuple[str | None, str, str, bool]]) -> list[str]:
    """What is said of each row: its reason, or nothing."""
    said = []
    for label, prompt, response, one in rows:
        try:
            found.add(label, ({"role": "user", "content": prompt},), [Given(response)], one)
            said.append("")
        except Bad as bad:
            said.append(bad.reason)
    return said


def by_hand(rows: list[tuple[str | None, str, str, bool]]) -> list[str]:
    """An id names one row of several responses; or one prompt, each of whose rows has another."""
    taken: dict[str, list[tuple[str, str, bool]]] = {}
    said = []
    for label, prompt, response, one in rows:
        others = taken.setdefault(label or "", [])
        if one:
            twice = any(alone and text == response for _, text, alone in others)
            bad = twice or any(asked != prompt for asked, _, _ in others[-1:])
        else:
            bad = not all(alone for _, _, alone in others)
        if label is None:
            said.append("missing_id")
        elif bad:
            said.append("duplicate_id")
        else:
            said.append("")
            others.append((prompt, response, one))
    return said


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, held=st.integers(0, 4))
def test_ids_on_disk_judge_every_row_as_ids_in_memory_do(tmp_path_factory, rows, held):
    folder = tmp_path_factory.mktemp("ids")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "HELD", held)
        found = Ids(folder)
        assert judged(found, rows) == judged(Ids(), rows) == by_hand(rows)
        assert len(found.seen) <= 2 * held + 2
        found.close()
    assert not list(folder.iterdir())


def test_a_disk_that_is_full_is_named_as_the_system_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "HELD", 500)
    monkeypatch.setattr(ids, "_TABLES", "PRAGMA max_page_count = 9;" + ids._TABLES)
    rows = [(f"{n}", "p", "x", False) for n in range(5000)]
    with pytest.raises(OSError, match="No space left") as raised:
        judged(Ids(tmp_path), rows)
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.filename).startswith(str(tmp_path))
