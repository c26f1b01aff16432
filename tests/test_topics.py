"""The generated world: what stands in which split, and how answers are marked."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.components.rows import Row
from bpo_data.components.topics import PREFIXES, STYLES, similarity, topics, verify
from bpo_data.components.topics_tasks import TOPICS, make_world, roman_of, words_of
from bpo_data.errors import UserError

SENTENCE = '{"answer":"46","style":"sentence"}'


def points(response: str, reference: str | None = SENTENCE) -> float:
    return verify((), response, reference)[0]


def core(row: Row) -> str:
    """The question without its polite prefix."""
    text = row.prompt[0]["content"]
    return text.removeprefix(max((p for p in PREFIXES if text.startswith(p)), key=len))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(topics(0, 3000, 800, 600))


def test_each_split_has_as_many_rows_as_asked_for(rows: list[Row]) -> None:
    assert Counter(row.split for row in rows) == {"seed": 3000, "pool": 800, "test": 600}


def test_no_prompt_stands_twice_or_in_two_splits(rows: list[Row]) -> None:
    assert max(Counter(row.prompt[0]["content"] for row in rows).values()) == 1


def test_no_test_question_of_a_held_out_topic_is_in_seed_or_pool(rows: list[Row]) -> None:
    held_out = {topic.name for topic in TOPICS if topic.held_out}
    kept_aside = {core(row) for row in rows if row.split == "test" and row.topic in held_out}
    assert len(held_out) == 9
    assert kept_aside.isdisjoint(core(row) for row in rows if row.split != "test")


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(rows: list[Row]) -> None:
    assert list(topics(0, 3000, 800, 600)) == rows
    assert {row.prompt[0]["content"] for row in topics(1, 0, 0, 50)} != {
        row.prompt[0]["content"] for row in topics(0, 0, 0, 50)
    }


def test_the_size_of_one_split_does_not_change_another(rows: list[Row]) -> None:
    tested = [row for row in rows if row.split == "test"]
    assert list(topics(0, 10, 20, 600))[30:] == tested


def test_the_pool_is_skewed_and_seed_and_test_are_not(rows: list[Row]) -> None:
    pool = Counter(row.topic for row in rows if row.split == "pool")
    test = Counter(row.topic for row in rows if row.split == "test")
    assert pool["add"] > 2 * pool["count"] > 0
    assert max(test.values()) < 2.5 * min(test.values())
    asked = Counter(core(row) for row in rows if row.split == "pool")
    assert asked.most_common(1)[0][1] >= 2  # near-copies: one question under several prefixes


def test_every_topic_has_its_share_of_wrong_seed_responses(rows: list[Row]) -> None:
    for topic in TOPICS:
        wrong = [
            json.loads(row.reference or "")["answer"] not in row.given[0].text
            for row in rows
            if row.topic == topic.name and row.split == "seed"
        ]
        assert 0.03 < sum(wrong) / len(wrong) < 0.40, topic.name


def test_seed_rows_carry_one_response_and_the_others_none(rows: list[Row]) -> None:
    assert {(row.split, len(row.given)) for row in rows} == {("seed", 1), ("pool", 0), ("test", 0)}
    assert {row.given[0].author for row in rows if row.given} == {"seed"}


def test_asking_for_more_prompts_than_there_are_is_a_user_error() -> None:
    with pytest.raises(UserError, match="pool split; it ran out"):
        list(topics(0, 0, 100_000, 0))


@pytest.mark.parametrize(
    ("topic", "question", "answer"),
    [
        ("add", "add 12 and 7", "19"),
        ("subtract", "subtract 3 from 20", "17"),
        ("bigger", "bigger of 41 and 8", "41"),
        ("reverse", "reverse a b c", "c b a"),
        ("sort", "sort 9 1 5", "1 5 9"),
        ("following", "month after december", "january"),
        ("following", "letter before a", "z"),
        ("convert", "convert 3 weeks to days", "21"),
        ("spell", "spell 342", "three hundred forty two"),
        ("parity", "parity of 7", "odd"),
        ("multiply", "multiply 12 and 11", "132"),
        ("roman", "roman for 49", "x l i x"),
        ("count", "count a in a b a", "2"),
    ],
)
def test_right_answers_worked_out_by_hand(topic: str, question: str, answer: str) -> None:
    world = make_world(0)
    kind = next(kind for kind in TOPICS if kind.name == topic)
    assert dict(kind.ask(index, world) for index in range(kind.size))[question] == answer


def test_numbers_in_words_and_in_roman() -> None:
    assert [words_of(n) for n in (0, 15, 40, 101, 999)] == [
        "zero", "fifteen", "forty", "one hundred one", "nine hundred ninety nine",
    ]  # fmt: skip
    assert [roman_of(n) for n in (4, 9, 14, 44, 99, 399)] == [
        "iv", "ix", "xiv", "xliv", "xcix", "cccxcix",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("the answer is 46.", 10.0),
        ("  The answer\nis 46 . ", 10.0),
        ("= 46", 7.0),
        ("[46]", 7.0),
        ("46", 6.0),
        ("the answer is 47.", 6.25),  # half alike: 1 + 2.5 / 2 + 4
        ("= 99", 2.0),
        ("46 and much more", 1 + 2.5 * 2 / 16),
        ("maybe 46", 1.0),
        ("", 1.0),
        (" \n", 1.0),
    ],
)
def test_points_worked_out_by_hand(response: str, expected: float) -> None:
    assert points(response) == pytest.approx(expected, abs=0.006)


def test_every_style_of_the_right_answer_gets_the_top_only_where_it_is_wanted() -> None:
    for wanted in STYLES:
        reference = json.dumps({"answer": "c b a", "style": wanted})
        best = {style for style in STYLES if points(STYLES[style].format("c b a"), reference) == 10}
        assert best == ({wanted} - {"hedged"})


def test_edit_distance_against_known_words() -> None:
    assert similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert similarity("", "") == 1.0
    assert similarity("abc", "") == 0.0


@given(st.text(alphabet=st.characters(), max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_response_gets_1_to_10_points_and_a_reason(response: str) -> None:
    given_points, reason = verify((), response, SENTENCE)
    assert 1.0 <= given_points <= 10.0
    assert reason


@pytest.mark.parametrize("hostile", ["(" * 9_000_000, "a " * 4_000_000, "\udcff\x00", "[" * 150])
def test_huge_and_broken_responses_are_marked_at_once(hostile: str) -> None:
    assert points(hostile) <= 3.5


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        (None, "no reference"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no text under answer"),
        ('{"answer": 4, "style": "reply"}', "no text under answer"),
        ('{"answer": "4", "style": "rude"}', "unknown style"),
        ('{"answer": "4", "style": ["a"]}', "unknown style"),
    ],
)
def test_an_unreadable_reference_is_named(reference: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        verify((), "= 4", reference)
