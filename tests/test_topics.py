"""The generated world: what stands in which split, and how answers are marked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_data.components.rows import Row
from bpo_data.components.sources import Topics
from bpo_data.components.topics import PREFIXES, SETS, STYLES, similarity, topics, verify
from bpo_data.components.topics_tasks import Topic, make_world, roman_of, words_of
from bpo_data.errors import UserError

SENTENCE = '{"answer":"46","style":"sentence"}'


def points(response: str, reference: str | None = SENTENCE) -> float:
    return verify((), response, reference)[0]


def core(row: Row) -> str:
    """The question without its polite prefix."""
    text = row.prompt[0]["content"]
    return text.removeprefix(max((p for p in PREFIXES if text.startswith(p)), key=len))


def every_question(kinds: tuple[Topic, ...], seed: int = 0) -> list[str]:
    world = make_world(seed)
    return [kind.ask(index, world)[0] for kind in kinds for index in range(kind.size)]


@pytest.fixture(scope="module", params=SETS)
def chosen(request: pytest.FixtureRequest) -> str:
    """The name of a set of kinds of question: each test that asks for it runs for every set."""
    return str(request.param)


@pytest.fixture(scope="module")
def kinds(chosen: str) -> tuple[Topic, ...]:
    return SETS[chosen]


@pytest.fixture(scope="module")
def rows(chosen: str) -> list[Row]:
    return list(topics(0, 3000, 800, 600, chosen))


def test_the_world_of_the_first_set_stays_what_results_were_measured_on() -> None:
    """The digest is of the rows before there was a second set."""
    rows = [
        [
            *(row.prompt[0]["content"], "".join(one.text for one in row.given)),
            *(row.origin, row.topic, row.reference, row.split),
        ]
        for seed in (0, 7)
        for row in topics(seed, 300, 80, 60)
    ]
    found = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert found == "283b1397c5ab5c5f59539c2af5048b58c340933b578851c863f5e40f72dd2092"


def test_each_split_has_as_many_rows_as_asked_for(rows: list[Row]) -> None:
    assert Counter(row.split for row in rows) == {"seed": 3000, "pool": 800, "test": 600}


@pytest.mark.parametrize("seed", [0, 15, 30])
def test_every_set_has_the_prompts_that_the_quickstart_asks_for(chosen: str, seed: int) -> None:
    assert sum(1 for _ in topics(seed, 6000, 1000, 840, chosen)) == 7840


def test_no_prompt_stands_twice_or_in_two_splits(rows: list[Row]) -> None:
    assert max(Counter(row.prompt[0]["content"] for row in rows).values()) == 1


def test_no_question_of_a_set_is_asked_twice_by_its_numbers(kinds: tuple[Topic, ...]) -> None:
    assert max(Counter(every_question(kinds)).values()) == 1


def test_two_sets_share_no_topic_no_question_and_no_first_word() -> None:
    for one, other in combinations(SETS.values(), 2):
        assert {kind.name for kind in one}.isdisjoint(kind.name for kind in other)
        first, second = every_question(one), every_question(other)
        assert set(first).isdisjoint(second)
        assert {text.split()[0] for text in first}.isdisjoint(text.split()[0] for text in second)


def test_the_origin_of_a_row_tells_its_set(rows: list[Row], chosen: str) -> None:
    name = {"first": "topics", "second": "topics-second"}[chosen]
    assert rows[0].origin == f"{name}@0/seed#0"


def test_sets_are_alike_in_styles_errors_and_sizes(kinds: tuple[Topic, ...]) -> None:
    styles = Counter(kind.style for kind in kinds)
    assert styles.keys() == STYLES.keys() - {"hedged"}
    assert max(styles.values()) - min(styles.values()) <= 1
    assert all(0.1 <= kind.wrong <= 0.3 and 70 <= kind.size <= 2_450 for kind in kinds)


def test_no_test_question_of_a_held_out_topic_is_in_seed_or_pool(
    rows: list[Row], chosen: str, kinds: tuple[Topic, ...]
) -> None:
    held_out = {topic.name for topic in kinds if topic.held_out}
    kept_aside = {core(row) for row in rows if row.split == "test" and row.topic in held_out}
    assert len(held_out) == {"first": 9, "second": 8}[chosen]
    assert kept_aside.isdisjoint(core(row) for row in rows if row.split != "test")


def test_most_test_questions_of_the_other_topics_are_in_seed_too(
    rows: list[Row], kinds: tuple[Topic, ...]
) -> None:
    by_heart = {topic.name for topic in kinds if not topic.held_out}
    asked = {core(row) for row in rows if row.split == "test" and row.topic in by_heart}
    known = {core(row) for row in rows if row.split == "seed"}
    assert len(asked & known) > 0.6 * len(asked)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    rows: list[Row], chosen: str
) -> None:
    assert list(topics(0, 3000, 800, 600, chosen)) == rows
    assert {row.prompt[0]["content"] for row in topics(1, 0, 0, 50, chosen)} != {
        row.prompt[0]["content"] for row in topics(0, 0, 0, 50, chosen)
    }


def test_the_size_of_one_split_does_not_change_another(rows: list[Row], chosen: str) -> None:
    tested = [row for row in rows if row.split == "test"]
    assert list(topics(0, 10, 20, 600, chosen))[30:] == tested


def test_the_pool_is_skewed_and_seed_and_test_are_not(
    rows: list[Row], kinds: tuple[Topic, ...]
) -> None:
    pool = Counter(row.topic for row in rows if row.split == "pool")
    test = Counter(row.topic for row in rows if row.split == "test")
    assert pool[kinds[0].name] > 2 * pool[kinds[-1].name] > 0
    assert max(test.values()) < 2.5 * min(test.values())
    asked = Counter(core(row) for row in rows if row.split == "pool")
    assert asked.most_common(1)[0][1] >= 2  # near-copies: one question under several prefixes


def test_every_topic_has_its_share_of_wrong_seed_responses(
    rows: list[Row], kinds: tuple[Topic, ...]
) -> None:
    for topic in kinds:
        wrong = [
            json.loads(row.reference or "")["answer"] not in row.given[0].text
            for row in rows
            if row.topic == topic.name and row.split == "seed"
        ]
        assert 0.03 < sum(wrong) / len(wrong) < 0.40, topic.name


def test_seed_rows_carry_one_response_and_the_others_none(rows: list[Row]) -> None:
    assert {(row.split, len(row.given)) for row in rows} == {("seed", 1), ("pool", 0), ("test", 0)}
    assert {row.given[0].author for row in rows if row.given} == {"seed"}


def test_asking_for_more_prompts_than_there_are_is_a_user_error(chosen: str) -> None:
    with pytest.raises(UserError, match="pool split; it ran out"):
        list(topics(0, 0, 100_000, 0, chosen))


def test_the_source_asks_the_set_that_its_option_names(chosen: str) -> None:
    sizes = {"seed_prompts": 5, "pool_prompts": 5, "test_prompts": 5}
    source = Topics(**sizes, topics=chosen)
    assert not list(source.problems())
    assert list(source.rows()) == list(topics(0, 5, 5, 5, chosen))
    if chosen == "first":
        assert list(source.rows()) == list(Topics(**sizes).rows())


def test_a_set_that_there_is_not_is_named_before_any_row_is_made() -> None:
    problem = "load.options.topics=third: choose first or second."
    assert list(Topics(topics="third").problems()) == [problem]


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
        ("double", "double 199", "398"),
        ("least", "least among 36 10 20", "10"),
        ("split", "split baba", "b a b a"),
        ("opposite", "opposite of hot", "cold"),
        ("opposite", "opposite of cold", "hot"),
        ("shift", "shift m w x", "n x y"),
        ("remainder", "remainder of 338 by 4", "2"),
        ("clock", "clock shows 7 wait 8", "3"),
        ("clock", "clock shows 12 wait 12", "12"),
        ("sign", "sign of 4 minus 9", "negative"),
        ("sign", "sign of 9 minus 9", "zero"),
        ("ordinal", "figures for three hundred forty second", "342"),
        ("ordinal", "figures for twentieth", "20"),
        ("vowels", "vowels within k a e t", "2"),
    ],
)
def test_right_answers_worked_out_by_hand(topic: str, question: str, answer: str) -> None:
    world = make_world(0)
    kind = next(kind for kinds in SETS.values() for kind in kinds if kind.name == topic)
    assert dict(kind.ask(index, world) for index in range(kind.size))[question] == answer


ROUND = [str(hour) for hour in range(1, 13)] * 2
READ = {
    word: value
    for line in (
        "1 one first, 2 two second, 3 three third, 4 four fourth, 5 five fifth, 6 six sixth",
        "7 seven seventh, 8 eight eighth, 9 nine ninth, 10 ten tenth, 11 eleven eleventh",
        "12 twelve twelfth, 13 thirteen thirteenth, 14 fourteen fourteenth, 15 fifteen fifteenth",
        "16 sixteen sixteenth, 17 seventeen seventeenth, 18 eighteen eighteenth",
        "19 nineteen nineteenth, 20 twenty twentieth, 30 thirty thirtieth, 40 forty fortieth",
        "50 fifty fiftieth, 60 sixty sixtieth, 70 seventy seventieth, 80 eighty eightieth",
        "90 ninety ninetieth",
    )
    for entry in line.split(", ")
    for value, *words in [entry.split()]
    for word in words
}


def read_number(words: list[str]) -> int:
    """``five hundred twelfth`` -> 512."""
    total = 0
    for word in words:
        total = total * 100 if word in ("hundred", "hundredth") else total + int(READ[word])
    return total


WORKED_OUT = {
    "double": lambda words: str(sum([int(words[-1])] * 2)),
    "least": lambda words: sorted(words[2:], key=int)[0],
    "split": lambda words: " ".join(words[-1]),
    "shift": lambda words: " ".join(chr(ord(letter) + 1) for letter in words[1:]),
    "remainder": lambda words: str(int(bin(int(words[2]))[2:][-2:], 2)),
    "clock": lambda words: ROUND[ROUND.index(words[2]) :][int(words[4]) % 12],
    "sign": lambda words: {"-": "negative", "0": "zero"}.get(
        str(int(words[2]) - int(words[4]))[0], "positive"
    ),
    "ordinal": lambda words: str(read_number(words[2:])),
    "vowels": lambda words: str(len([word for word in words[2:] if word in {*"aeiou"}])),
}


@pytest.mark.parametrize("topic", WORKED_OUT)
def test_every_answer_of_the_second_set_is_what_its_words_ask(topic: str) -> None:
    world = make_world(0)
    kind = next(kind for kind in SETS["second"] if kind.name == topic)
    for index in range(kind.size):
        question, answer = kind.ask(index, world)
        assert WORKED_OUT[topic](question.split()) == answer, question


def answers_of(topic: str, seed: int) -> dict[str, str]:
    world = make_world(seed)
    kind = next(kind for kind in SETS["second"] if kind.name == topic)
    return dict(kind.ask(index, world) for index in range(kind.size))


def test_the_opposite_of_an_opposite_is_the_word_itself() -> None:
    known = answers_of("opposite", 0)
    for question, answer in known.items():
        word = question.removeprefix("opposite of ")
        assert answer != word
        assert known[f"opposite of {answer}"] == word


@pytest.mark.parametrize("topic", ["home", "trade"])
def test_facts_of_invented_people_hold_in_both_wordings_and_in_one_world_only(topic: str) -> None:
    known = answers_of(topic, 0)
    wordings: dict[str, set[str]] = {}
    for question, answer in known.items():
        wordings.setdefault(question.split()[-1], set()).add(answer)
    assert len(wordings) == 100
    assert all(len(answers) == 1 for answers in wordings.values())
    other = answers_of(topic, 1)
    shared = known.keys() & other.keys()
    assert not shared or any(known[question] != other[question] for question in shared)


def test_every_invented_person_has_a_town_to_himself_and_trades_have_several_people() -> None:
    assert set(Counter(answers_of("home", 0).values()).values()) == {2}
    trades = Counter(answers_of("trade", 0).values())
    assert len(trades) == 10
    assert min(trades.values()) >= 4


def test_no_fact_of_the_second_set_is_one_of_the_first_turned_round() -> None:
    world = make_world(0)
    assert not {
        (question.split()[-1], town) for question, town in answers_of("home", 0).items()
    } & set(zip(world.capitals, world.names, strict=True))


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


def test_reasons_tell_right_from_wrong_styles_and_guesses_and_nothing_finer() -> None:
    styles = [*STYLES.values(), "{}"]
    texts = ["", "w" * 201, *(style.format(said) for style in styles for said in ("46", "47", "9"))]
    assert {verify((), text, SENTENCE)[1] for text in texts} == {
        "empty", "longer than 200 characters", "a guess, right", "a guess, wrong",
        "right, wanted style", "right, another style", "right, no known style",
        "wrong, wanted style", "wrong, another style", "wrong, no known style",
    }  # fmt: skip


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
