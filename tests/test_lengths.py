"""Length bias: the figures, and draws of pairs in which length tells chosen from rejected less."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import statistics
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st
from pairing import paired, pool

from bpo_data.components.lengths import alike, bias, evened, first_of_each, side
from bpo_data.errors import UserError
from bpo_data.stages.export import drift
from bpo_data.stages.pair import PairConfig

PAIR = st.tuples(st.integers(0, 5), st.integers(0, 5))
PROMPTS = st.lists(
    st.tuples(st.lists(PAIR, max_size=4), st.lists(PAIR, max_size=6)), min_size=1, max_size=8
)
ANSWERS = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=9), st.integers(1, 5).map(float)),
    min_size=1,
    max_size=7,
)
POOLS = st.dictionaries(st.sampled_from([f"p{n}" for n in range(9)]), ANSWERS, min_size=1)


def named(lengths: list[tuple[int, int]], start: str) -> list[dict]:
    return [
        {"pair_id": f"{start}{number}", "chosen_length": chosen, "rejected_length": rejected}
        for number, (chosen, rejected) in enumerate(lengths)
    ]


def drawn_and_spare(prompts) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    names = [f"p{number}" for number in range(len(prompts))]
    drawn = {name: named(had, "a") for name, (had, _) in zip(names, prompts, strict=True)}
    spare = {name: named(rest, "b") for name, (_, rest) in zip(names, prompts, strict=True)}
    return drawn, spare


def surplus(pairs: dict[str, list[dict]]) -> int:
    """Pairs with the longer chosen less those with the longer rejected."""
    flat = [pair for some in pairs.values() for pair in some]
    return sum(p["chosen_length"] > p["rejected_length"] for p in flat) - sum(
        p["chosen_length"] < p["rejected_length"] for p in flat
    )


@given(prompts=PROMPTS, seed=st.integers(0, 3))
def test_evened_draws_hold_both_kinds_alike_or_have_nothing_to_exchange(prompts, seed):
    drawn, spare = drawn_and_spare(prompts)
    after, exchanged = evened(drawn, spare, seed)
    left = surplus(after)
    many = 1 if left > 0 else -1
    stuck = [
        name
        for name, pairs in after.items()
        if not any(side(pair) == many for pair in pairs)
        or not any(side(pair) == -many for pair in spare[name] if pair not in pairs)
    ]
    assert abs(left) <= 1 or len(stuck) == len(after)
    assert abs(surplus(drawn)) - abs(left) == 2 * exchanged


@given(prompts=PROMPTS, seed=st.integers(0, 3))
def test_evened_draws_keep_every_depth_and_no_pair_twice(prompts, seed):
    drawn, spare = drawn_and_spare(prompts)
    after, exchanged = evened(drawn, spare, seed)
    new = 0
    for name, pairs in after.items():
        names = {pair["pair_id"] for pair in pairs}
        assert len(pairs) == len(names) == len(drawn[name])
        assert names <= {pair["pair_id"] for pair in drawn[name] + spare[name]}
        new += len(names - {pair["pair_id"] for pair in drawn[name]})
    assert new == exchanged, "what is not exchanged stays as the lot drew it"


@given(prompts=PROMPTS, seed=st.integers(0, 3))
def test_evened_draws_do_not_depend_on_the_order_of_prompts(prompts, seed):
    drawn, spare = drawn_and_spare(prompts)
    backwards = evened(dict(reversed(drawn.items())), dict(reversed(spare.items())), seed)
    assert backwards == evened(drawn, spare, seed)


@given(prompts=PROMPTS)
def test_a_few_spare_pairs_of_each_kind_are_all_that_is_needed(prompts):
    drawn, spare = drawn_and_spare(prompts)
    few = {name: first_of_each(pairs, 4) for name, pairs in spare.items()}
    assert evened(drawn, few, 0) == evened(drawn, spare, 0)


def test_the_prompt_with_the_most_pairs_too_many_gives_first():
    longer, shorter = (2, 1), (1, 2)
    prompts = [([longer] * 4, [shorter] * 4), ([longer] * 2, [shorter] * 4), ([longer] * 2, [])]
    after, exchanged = evened(*drawn_and_spare(prompts), seed=0)
    assert exchanged == 4
    first, second, stuck = (sum(map(side, pairs)) for pairs in after.values())
    assert (sorted([first, second]), stuck) == ([-2, 0], 2)
    assert after["p0"][0]["pair_id"] == "a0", "drawn last, gone first"


@given(lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_figures_of_length_equal_their_definitions(lengths):
    found = bias(np.array(lengths))
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths]
    assert found["longer_share"] == pytest.approx(statistics.mean(wins), abs=1e-4)
    assert found["chosen_longer"] == wins.count(1)
    assert found["equally_long"] == wins.count(0.5)
    assert found["mean_chosen"] == pytest.approx(statistics.mean(a for a, _ in lengths), abs=0.06)
    assert found["mean_rejected"] == pytest.approx(statistics.mean(b for _, b in lengths), abs=0.06)
    ratio = statistics.median(max(a, 1) / max(b, 1) for a, b in lengths)
    assert found["median_ratio"] == pytest.approx(ratio, abs=1e-3)


def test_a_ratio_counts_both_ways_and_its_bound_is_allowed():
    lengths = [(100, 150), (150, 100), (100, 151), (151, 100), (0, 1), (0, 0)]
    within = [alike(pair, 1.5) for pair in named(lengths, "")]
    assert within == [True, True, False, False, False, True]
    assert all(alike(pair, 0) for pair in named(lengths, ""))


def candidates(rows: list[dict], **options) -> tuple[bytes, list[dict], dict]:
    """The bytes of the pairs' file, its rows and the stage's facts; none where there is no pair."""
    with TemporaryDirectory() as folder:
        try:
            draft = paired(Path(folder), rows, PairConfig(**options))
        except UserError:
            return b"", [], {}
        written = (Path(folder) / "pairs.parquet").read_bytes()
        return written, draft.read().to_pylist(), draft.facts


def by_lot(prompts: dict[str, list[tuple[str, float]]], count: int, seed: int) -> list[str]:
    """Ids of what the stage drew before it knew of lengths, worked out anew."""
    found = []
    for name, answers in prompts.items():
        scores: dict[str, list[float]] = {}
        number: dict[str, int] = {}
        for place, (text, score) in enumerate(answers):
            scores.setdefault(text, []).append(score)
            number.setdefault(text, place)
        mean = {text: statistics.fmean(given) for text, given in scores.items()}
        ids = [
            f"{name}/{number[chosen]:02d}>{number[rejected]:02d}"
            for chosen, rejected in itertools.permutations(mean, 2)
            if mean[chosen] > mean[rejected]
        ]
        ids.sort(key=lambda one: hashlib.sha256(f"{seed}/pair/{one}".encode()).hexdigest())
        found += ids[:count]
    return sorted(found)


@settings(max_examples=50, deadline=None)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, count=st.integers(1, 4), seed=st.integers(0, 2))
def test_without_a_length_option_pairs_are_drawn_by_lot_as_before(prompts, count, seed):
    _, rows, _ = candidates(pool(prompts), per_prompt=count, seed=seed)
    assert [row["pair_id"] for row in rows] == by_lot(prompts, count, seed)


@settings(max_examples=50, deadline=None)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, ratio=st.sampled_from([1.0, 1.5, 3.0]))
def test_candidates_are_all_pairs_within_the_length_ratio(prompts, ratio):
    texts = {row["response_id"]: row["text"] for row in pool(prompts)}
    _, every, _ = candidates(pool(prompts), per_prompt=99)
    _, near, facts = candidates(pool(prompts), per_prompt=99, max_length_ratio=ratio)
    sizes = {
        row["pair_id"]: sorted(len(texts[row[side]]) for side in ("chosen_id", "rejected_id"))
        for row in every
    }
    wanted = [name for name, (short, long) in sizes.items() if long <= ratio * short]
    assert [row["pair_id"] for row in near] == wanted
    if near:
        assert facts["pairs_over_length_ratio"] == len(every) - len(near)
        prompts_left = {row["prompt_id"] for row in near}
        prompts_with = {row["prompt_id"] for row in every}
        assert facts["prompts_lost_to_length"] == len(prompts_with - prompts_left)
        assert facts["prompts_without_pairs"] == len(prompts) - len(prompts_left)


@settings(max_examples=50, deadline=None)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, ratio=st.sampled_from([0.0, 2.0]), seed=st.integers(0, 2))
def test_matching_keeps_depths_and_brings_the_longer_chosen_nearer_to_half(prompts, ratio, seed):
    options = {"per_prompt": 3, "max_length_ratio": ratio, "seed": seed}
    _, before, facts = candidates(pool(prompts), **options)
    _, after, matched = candidates(pool(prompts), **options, match_length=True)
    assert Counter(row["prompt_id"] for row in before) == Counter(r["prompt_id"] for r in after)
    if after:
        was, now = (f["lengths"]["candidates"]["longer_share"] for f in (facts, matched))
        assert abs(now - 0.5) <= abs(was - 0.5)
        assert matched["lengths"]["possible"] == facts["lengths"]["possible"]
        longer = Counter(
            len(texts["chosen"]) - len(texts["rejected"]) > 0 for texts in texts_of(prompts, after)
        )
        assert matched["lengths"]["candidates"]["chosen_longer"] == longer[True]


def texts_of(prompts: dict[str, list[tuple[str, float]]], rows: list[dict]) -> list[dict]:
    texts = {row["response_id"]: row["text"] for row in pool(prompts)}
    return [{side: texts[row[f"{side}_id"]] for side in ("chosen", "rejected")} for row in rows]


@settings(max_examples=50, deadline=None)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, matched=st.booleans(), order=st.randoms(use_true_random=False))
def test_the_order_of_responses_changes_no_byte(prompts, matched, order: random.Random):
    rows = pool(prompts)
    options = {"per_prompt": 2, "match_length": matched, "max_length_ratio": 2.0}
    first, _, _ = candidates(rows, **options)
    order.shuffle(rows)
    assert candidates(rows, **options)[0] == first


def test_what_cannot_be_matched_is_said(tmp_path):
    only_longer = {f"p{n}": [("a long answer", 9.0), ("short", 1.0)] for n in range(5)}
    draft = paired(tmp_path, pool(only_longer), PairConfig(per_prompt=1, match_length=True))
    assert draft.facts["prompts_of_one_kind"] == 5
    assert draft.facts["notes"] == [
        "pair.match_length: chosen is the longer in 5 pairs and the shorter in 0; no prompt has "
        "one left to exchange"
    ]


def test_a_ratio_that_leaves_no_pair_names_itself(tmp_path):
    rows = pool({"p": [("a long answer", 9.0), ("short", 1.0)]})
    with pytest.raises(UserError, match=r"in each of 1 pairs .* pair.max_length_ratio=2 times"):
        paired(tmp_path, rows, PairConfig(max_length_ratio=2))


@pytest.mark.parametrize("ratio", [0.5, 0.999, -1, math.inf, math.nan])
def test_ratios_that_no_pair_can_have_are_refused(ratio):
    (line,) = PairConfig(max_length_ratio=ratio).problems()
    assert line.startswith(f"pair.max_length_ratio={ratio}: ")
    assert "0 is no bound" in line


def test_a_wrong_ratio_ends_the_run_in_one_line():
    result = run("stage=pair", "plan=true", "pair.max_length_ratio=0.5")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.76, 0.88, "prefers length: the chosen response is the longer in 88% of the kept pairs"),
        (0.25, 0.17, "prefers brevity: the chosen response is the longer in 17% of the kept pairs"),
        (0.76, 0.80, ""),
        (0.25, 0.22, ""),
        (0.2, 0.5, ""),
        (0.8, 0.5, ""),
    ],
)
def test_a_rule_that_chooses_for_length_is_said(before, after, said):
    lengths = {"candidates": {"longer_share": before}, "kept": {"longer_share": after}}
    found = drift(lengths)
    assert said in found
    assert bool(found) == bool(said)
