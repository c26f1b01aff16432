"""Rows of each format, by hypothesis: nothing lost, nothing twice, nothing changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from exporting import PAIRWISE, asked, plain_pair, user
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.components.exporters import KINDS, exporters, problems
from bpo_data.components.exporters.grouping import asked_of
from bpo_data.components.exporters.kto import TIE
from bpo_data.components.exporters.listwise import ranks
from bpo_data.components.exporters.rows import Asked, Row
from bpo_data.errors import UserError
from bpo_data.tables import MSG, Message

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ROLE = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(lambda role, text: Message(role=role, content=text), ROLE, TEXT))
ANSWERS = st.lists(TEXT, min_size=2, max_size=6, unique=True)


@st.composite
def prompts(draw: Any) -> Asked:
    texts = draw(ANSWERS)
    number = st.integers(0, len(texts) - 1)
    pair = st.tuples(number, number).filter(lambda two: two[0] != two[1])
    pairs = draw(st.lists(pair, min_size=1, max_size=8, unique=True))
    return asked([*draw(TURNS), user(draw(TEXT))], texts, pairs)


def rows(name: str, one: Asked) -> list[Row]:
    exporter = exporters([name])[name]
    exporter.meet(None)
    return list(exporter.rows(one))


def as_stored(name: str, row: Row) -> dict[str, Any]:
    """The row through its declared column types: a column too many or too few fails."""
    columns = KINDS[name]().columns
    assert set(row.values) == set(columns.names)
    return pa.Table.from_pylist([dict(row.values)], schema=columns).to_pylist()[0]


@given(one=prompts(), name=st.sampled_from(PAIRWISE))
def test_every_pair_is_a_row_with_the_same_texts_or_has_a_reason(one, name):
    made = rows(name, one)
    assert [row.id for row in made] == [pair.pair_id for pair in one.pairs]
    for row, pair in zip(made, one.pairs, strict=True):
        if not row.reason:
            told = plain_pair(name, as_stored(name, row))
            assert told == (one.prompt, pair.chosen.text, pair.rejected.text)


@given(one=prompts())
def test_formats_of_plain_message_lists_refuse_no_conversation(one):
    assert not any(row.reason for name in ("trl", "conversations") for row in rows(name, one))


@given(one=prompts())
def test_llamafactory_takes_just_what_alternates_after_one_system_message(one):
    roles = [turn["role"] for turn in one.prompt]
    roles = roles[1:] if roles[0] == "system" else roles
    letters = "".join({"user": "q", "tool": "q", "assistant": "a", "system": "s"}[r] for r in roles)
    wanted = letters == ("qa" * len(letters))[: len(letters)] and len(letters) % 2 == 1
    assert all(bool(row.reason) != wanted for row in rows("llamafactory", one))


@given(one=prompts())
def test_openai_refuses_just_the_turns_of_tools(one):
    tools = any(turn["role"] == "tool" for turn in one.prompt)
    assert {bool(row.reason) for row in rows("openai", one)} == {tools}


@given(one=prompts())
def test_kto_labels_are_the_majority_of_each_texts_pairs(one):
    votes: Counter[str] = Counter()
    for pair in one.pairs:
        votes[pair.chosen.text] += 1
        votes[pair.rejected.text] -= 1
    made = rows("kto", one)
    labels = {
        row.values["completion"][0]["content"]: row.values["label"] for row in made if row.values
    }
    assert labels == {text: sum_ > 0 for text, sum_ in votes.items() if sum_}
    assert [row.reason for row in made if not row.values] == [TIE] * list(votes.values()).count(0)
    assert len(made) == len(votes), "each distinct text stands once"


def test_kto_takes_equal_texts_of_two_responses_for_one():
    made = rows("kto", asked([user("?")], ["yes", "no", "yes"], [(0, 1), (2, 1)]))
    assert [(row.id, row.values["label"]) for row in made] == [("p/00", True), ("p/01", False)]


@given(one=prompts())
def test_a_list_holds_every_scored_response_and_ranks_agree_with_scores(one):
    one.answers["p/00"].score = None
    (row,) = rows("listwise", one)
    values = as_stored("listwise", row)
    assert values["response_ids"] == [name for name in one.answers if name != "p/00"]
    scored = list(zip(values["scores"], values["ranks"], strict=True))
    assert all((a > b) == (m < n) for a, m in scored for b, n in scored)
    assert min(values["ranks"]) == 1
    assert values["responses"] == [one.answers[name].text for name in values["response_ids"]]


def test_equal_scores_share_a_rank_and_the_next_counts_on():
    assert ranks([2.0, 5.0, 5.0, 1.0]) == [3, 1, 1, 4]


@given(
    depths=st.lists(st.integers(1, 4), min_size=1, max_size=200), test=st.sets(st.integers(0, 199))
)
def test_tables_become_prompts_each_once_with_its_pairs_and_responses(depths, test):
    names = [f"{n:04d}" for n in range(len(depths))]
    kept = [
        {
            "pair_id": f"{name}/{n:02d}>{n + 1:02d}", "prompt_id": name,
            "split": "test" if place in test else "train",
            "chosen_id": f"{name}/{n:02d}", "rejected_id": f"{name}/{n + 1:02d}",
        }
        for place, (name, depth) in enumerate(zip(names, depths, strict=True))
        for n in range(depth)
    ]  # fmt: skip
    responses = [
        {"response_id": f"{name}/{n:02d}", "prompt_id": name, "text": f"{name} {n}", "author": "a"}
        for name in reversed(names)
        for n in range(6)
    ]
    turns = pa.table({"prompt_id": names, "prompt": pa.array([[user(n)] for n in names], MSG)})
    tables = pa.Table.from_pylist(kept), turns, pa.Table.from_pylist(responses)
    scores = pa.table(
        {
            "response_id": [row["response_id"] for row in responses],
            "score": [1.0] * len(responses),
        }
    )
    for points in (None, scores):
        found = asked_of(*tables, points)
        assert [one.prompt_id for one in found] == names
        pairs = [pair for one in found for pair in one.pairs]
        assert [pair.pair_id for pair in pairs] == [row["pair_id"] for row in kept]
        assert all(one.prompt == [user(one.prompt_id)] for one in found)
        for one, depth in zip(found, depths, strict=True):
            assert len(one.answers) == (6 if points else depth + 1)
            assert all(answer.text.startswith(one.prompt_id) for answer in one.answers.values())


def test_an_unknown_format_is_told_with_the_nearest_name():
    (told,) = problems(["llamafactori"])
    assert "export.formats=llamafactori is not known. Did you mean llamafactory?" in told
    assert list(problems(["trl", "trl"])) == [
        "export.formats=['trl', 'trl'] has trl twice. Name each format once."
    ]
    assert not list(problems(list(KINDS)))


def test_a_format_from_outside_is_named_by_what_stands_after_the_colon():
    made = exporters(["kto", "bpo_data.components.exporters.trl:Trl"])
    assert list(made) == ["kto", "Trl"]
    with pytest.raises(UserError, match="cannot be imported"):
        exporters(["nowhere.at.all:Trl"])
