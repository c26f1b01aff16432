"""What holds of hygiene figures for any judgement, and beside plain loops."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hygiene_cases import compared, figure, item, points, rows, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from bpo_data.components.hygiene import VERDICT, hygiene
from bpo_data.components.hygiene_measures import MEASURES
from bpo_data.components.judging import Item, Judgement, Opinion


@st.composite
def judgements(draw) -> tuple[list[Item], Judgement]:
    """A few prompts, points with repeats by two judges and comparisons by two more."""
    sizes = draw(st.lists(st.integers(1, 5), max_size=4))
    texts = st.sampled_from(["", "a", "bb", "b b", "dddd", "é", " a "])
    authors = st.sampled_from(["", "gpt-4", "claude-2", "llama"])
    groups = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    items = [item(draw(texts), group, draw(authors)) for group in groups]
    score = st.sampled_from([None, 1.0, 2.0, 7.3, 10.0])
    opinions = [
        points(judge, row, draw(score), repeat)
        for judge in ("gpt-4o", "other")
        for repeat in range(draw(st.integers(0, 3)))
        for row in range(len(items))
    ]
    pairs = [
        (first, second)
        for first, second in permutations(range(len(items)), 2)
        if groups[first] == groups[second]
    ]
    outcome = st.sampled_from([None, 0.0, 0.5, 1.0])
    for judge in ("claude", "duel"):
        for first, second in draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else ():
            for repeat in range(draw(st.integers(1, 2))):
                opinions.append(compared(judge, first, second, draw(outcome), repeat))
    return items, Judgement(verdicts(*[draw(score) for _ in items]), opinions)


@settings(max_examples=75, deadline=None)
@given(judgements(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(case, random):
    items, judgement = case
    order = list(range(len(items)))
    random.shuffle(order)
    place = {row: at for at, row in enumerate(order)}
    opinions = [
        Opinion(
            one.judge, place[one.item], one.score, one.state, one.reply, one.level, one.repeat,
            None if one.against is None else place[one.against],
        )
        for one in judgement.opinions
    ]  # fmt: skip
    random.shuffle(opinions)
    moved = Judgement([judgement.verdicts[row] for row in order], opinions)
    assert hygiene([items[row] for row in order], moved, (1, 10)) == hygiene(
        items, judgement, (1, 10)
    )


def test_the_order_of_many_prompts_changes_no_bit_either():
    rng = np.random.default_rng(0)
    groups = [str(group) for group in range(200) for _ in range(rng.integers(2, 9))]
    items = [item("x" * int(rng.integers(1, 50)), group) for group in groups]
    scores = rng.random(len(items)).tolist()
    opinions = [
        points(judge, row, float(rng.random()), repeat)
        for judge in "jk" for repeat in range(3) for row in range(len(items))
    ]  # fmt: skip
    table = hygiene(items, Judgement(verdicts(*scores), opinions), None)
    last = len(items) - 1
    turned = [
        Opinion(one.judge, last - one.item, one.score, one.state, "", repeat=one.repeat)
        for one in opinions[::-1]
    ]
    assert hygiene(items[::-1], Judgement(verdicts(*scores[::-1]), turned), None) == table


@settings(max_examples=50, deadline=None)
@given(judgements())
def test_swapping_all_seats_swaps_what_the_first_seat_wins_and_nothing_else(case):
    items, judgement = case
    swapped = [
        one
        if one.against is None
        else compared(
            one.judge, one.against, one.item, None if one.score is None else 1 - one.score,
            one.repeat,
        )
        for one in judgement.opinions
    ]  # fmt: skip
    before, after = rows(items, judgement), rows(items, Judgement(judgement.verdicts, swapped))
    assert before.keys() == after.keys()
    for key, row in before.items():
        if key[0] != "first_seat_wins":
            assert row == after[key]
        elif row["value"] is not None:
            assert row["value"] == pytest.approx(1 - after[key]["value"])


@settings(max_examples=75, deadline=None)
@given(judgements())
def test_values_are_in_range_inside_their_intervals_and_never_nan(case):
    for row in hygiene(*case, (1, 10)).to_pylist():
        kind = MEASURES[row["measure"]]
        numbers = [row[name] for name in ("value", "low", "high") if row[name] is not None]
        assert all(math.isfinite(number) for number in numbers)
        if kind.ends:
            assert all(kind.ends[0] <= number <= kind.ends[1] for number in numbers), row
        if row["low"] is not None:
            assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9
        assert (row["count"] == 0) == (row["value"] is None)
        assert row["note"].endswith(".")


def by_prompt(cases: list[tuple[str, float]]) -> tuple[float | None, int]:
    groups: dict[str, list[float]] = {}
    for group, value in cases:
        groups.setdefault(group, []).append(value)
    if not groups:
        return None, 0
    means = [sum(values) / len(values) for values in groups.values()]
    return pytest.approx(sum(means) / len(means), abs=1e-12), len(cases)


@settings(max_examples=75, deadline=None)
@given(judgements())
def test_figures_equal_those_of_plain_loops(case):
    items, judgement = case
    found = rows(items, judgement)
    scores = [verdict.score for verdict in judgement.verdicts]
    together = [
        (one, other)
        for one, other in combinations(range(len(items)), 2)
        if items[one].group == items[other].group
    ]
    longer, tied = [], []
    for one, other in together:
        if scores[one] is None or scores[other] is None:
            continue
        group, ahead = items[one].group, scores[one] - scores[other]
        more = len(items[one].text) - len(items[other].text)
        if ahead and more:
            longer.append((group, float((ahead > 0) == (more > 0))))
        if items[one].text.strip() != items[other].text.strip():
            tied.append((group, float(ahead == 0)))
    assert figure(found["longer_wins", VERDICT, ""]) == by_prompt(longer)
    assert figure(found["tied_pairs", VERDICT, ""]) == by_prompt(tied)

    correlations = []
    for group in {one.group for one in items}:
        there = [
            row for row, one in enumerate(items) if one.group == group and scores[row] is not None
        ]
        points_there = [scores[row] for row in there]
        lengths = [len(items[row].text) for row in there]
        distinct = len({items[row].text.strip() for row in there}) >= 3
        if distinct and len(set(points_there)) > 1 and len(set(lengths)) > 1:
            correlations.append((group, spearmanr(points_there, lengths)[0]))
    assert figure(found["length_spearman", VERDICT, ""]) == by_prompt(correlations)

    for judge in {one.judge for one in judgement.opinions if one.against is not None}:
        said = {
            (one.item, one.against, one.repeat): one.score
            for one in judgement.opinions
            if one.judge == judge and one.score is not None
        }
        flips = [
            (items[first].group, float(forward != 0.5 and forward == said[second, first, repeat]))
            for (first, second, repeat), forward in said.items()
            if first < second and (second, first, repeat) in said
        ]
        assert figure(found["seat_flip_rate", judge, ""]) == by_prompt(flips)

    for judge in {one.judge for one in judgement.opinions if one.against is None}:
        answers: dict[int, list[float]] = {}
        for one in judgement.opinions:
            if one.judge == judge and one.score is not None:
                answers.setdefault(one.item, []).append(one.score)
        apart = [
            (items[row].group, np.mean([abs(a - b) for a, b in combinations(several, 2)]))
            for row, several in answers.items()
            if len(several) > 1
        ]
        assert figure(found["repeat_difference", judge, ""]) == by_prompt(apart)
