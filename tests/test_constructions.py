"""Which pairs each construction draws, and what the filters of the pair stage leave out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import statistics
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st
from pairing import paired, pool, said
from test_server_pipeline import arguments

from bpo_data.components.certainty import Opinions
from bpo_data.components.constructions import KINDS, accepted
from bpo_data.components.scales import scaled
from bpo_data.errors import UserError
from bpo_data.llm.stub import StubServer
from bpo_data.pipelines.config import read
from bpo_data.stages.pair import PairConfig

SCORES = st.lists(st.integers(1, 9).map(float), min_size=2, max_size=9)
POOLS = st.dictionaries(st.sampled_from(["p0", "p1", "p2"]), SCORES, min_size=1)
BEFORE = (
    *("pair_id", "prompt_id", "chosen_id", "rejected_id"),
    *("score_chosen", "score_rejected", "margin"),
)


def answers(prompts: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Responses of other texts and, over a prompt, of many lengths."""
    return pool(
        {
            name: [(f"{'x' * (number * 5 % 7)}{number}", score) for number, score in enumerate(own)]
            for name, own in prompts.items()
        }
    )


def drawn(rows: list[dict[str, Any]], opinions: Any = None, **options: Any) -> tuple[list, dict]:
    """The pairs the stage draws, and its facts; none where there is no pair."""
    with TemporaryDirectory() as folder:
        try:
            draft = paired(Path(folder), rows, PairConfig(**options), opinions)
        except UserError:
            return [], {}
        return draft.read().to_pylist(), draft.facts


def ids(pairs: list[dict[str, Any]]) -> list[str]:
    return [pair["pair_id"] for pair in pairs]


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "7317d9f158c2e72a07653a90f48cd185c86b21577316325b8e95dd07f173d7df"),
        (
            {
                "per_prompt": 2,
                "match_length": True,
                "max_length_ratio": 2.0,
                "seed": 3,
                "scale": "rank",
                "min_margin": 1.0,
            },
            "dd86900820753ea6c3690c852f3cc6330ac77002acb134dc911279b441e95505",
        ),
    ],
)
def test_the_default_draws_what_it_drew_before_there_were_kinds(options, digest):
    # The digests were taken from the stage of version 1.
    rng = random.Random(7)
    prompts = {
        f"p{n:02d}": [
            ("x" * rng.randint(1, 9) + str(k % 5), float(rng.randint(1, 10))) for k in range(7)
        ]
        for n in range(12)
    }
    rows, _ = drawn(pool(prompts), **options)
    assert {row["p_chosen"] for row in rows} == {None}
    content = json.dumps([[row[name] for name in BEFORE] for row in rows])
    assert hashlib.sha256(content.encode()).hexdigest() == digest


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, seed=st.integers(0, 3))
def test_best_worst_is_every_extreme_pair_and_no_other(prompts, seed):
    rows, facts = drawn(answers(prompts), kind="best_worst", per_prompt=99, seed=seed)
    wanted = {
        f"{name}/{a:02d}>{b:02d}"
        for name, own in prompts.items()
        for a, b in itertools.permutations(range(len(own)), 2)
        if own[a] == max(own) > min(own) == own[b]
    }
    assert set(ids(rows)) == wanted
    assert not facts or facts["prompts_lost_to_kind"] == 0


@settings(deadline=None, max_examples=20)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, seed=st.integers(0, 3), deviations=st.sampled_from([0.0, 2.0]))
@pytest.mark.parametrize("kind", ["best_worst", "low"])
def test_the_next_best_pair_stands_for_one_that_a_filter_leaves_out(
    kind, prompts, seed, deviations
):
    rows, bound = answers(prompts), {"max_length_ratio": 2.0}
    every, _ = drawn(rows, per_prompt=99, **bound)
    options = {"deviations": deviations} if kind == "low" else {}
    found, facts = drawn(rows, kind=kind, options=options, per_prompt=1, seed=seed, **bound)
    assert not facts or facts["prompts_lost_to_kind"] == 0

    def worth(row: dict[str, Any]) -> tuple[float, float]:
        own = prompts[row["prompt_id"]]
        target = statistics.mean(own) - deviations * statistics.pstdev(own)
        points = row["score_chosen"]
        return (row["margin"], points) if kind == "best_worst" else (
            (points, -abs(row["score_rejected"] - target))
        )  # fmt: skip

    for name in prompts:
        left, got = ([row for row in rows if row["prompt_id"] == name] for rows in (every, found))
        assert len(got) == bool(left)
        assert not left or worth(got[0]) == pytest.approx(max(map(worth, left)))


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(prompts=POOLS)
def test_adjacent_is_every_pair_with_no_points_in_between(prompts):
    rows, _ = drawn(answers(prompts), kind="adjacent", per_prompt=99)
    wanted = {
        f"{name}/{a:02d}>{b:02d}"
        for name, own in prompts.items()
        for a, b in itertools.permutations(range(len(own)), 2)
        if own[a] > own[b] and not any(own[b] < other < own[a] for other in own)
    }
    assert set(ids(rows)) == wanted


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, count=st.integers(1, 4), deviations=st.sampled_from([1.0, 2.0]))
def test_low_rejects_the_nearest_to_the_mean_less_deviations(prompts, count, deviations):
    options = {"kind": "low", "options": {"deviations": deviations}}
    rows, _ = drawn(answers(prompts), **options, per_prompt=count)
    for name, own in prompts.items():
        mine = [row for row in rows if row["prompt_id"] == name]
        target = statistics.mean(own) - deviations * statistics.pstdev(own)
        far = sorted(abs(score - target) for score in own if score < max(own))
        far = sorted(far * own.count(max(own)))[:count]
        assert all(row["score_chosen"] == max(own) for row in mine)
        found = sorted(abs(row["score_rejected"] - target) for row in mine)
        assert found == pytest.approx(far)


def test_low_by_hand_is_not_the_worst_where_one_is_far_off():
    # The mean is 6.4 and the variance 60.4 / 10: 6.4 - 2.458 is nearest to 4, not to 0.
    own = [0.0, 4.0, 7.0, 7.0, 7.0, 7.0, 7.0, 8.0, 8.0, 9.0]
    target = statistics.mean(own) - statistics.pstdev(own)
    assert target == pytest.approx(3.942, abs=1e-3)
    options = {"kind": "low", "options": {"deviations": 1.0}, "per_prompt": 1}
    (pair,), _ = drawn(answers({"p0": own}), **options)
    assert (pair["score_chosen"], pair["score_rejected"]) == (9, 4)


def distance_from_uniform(shares: list[float]) -> float:
    """Kolmogorov's distance of shares from the uniform distribution over [0, 1]."""
    ordered, count = sorted(shares), len(shares)
    return max(max((i + 1) / count - x, x - i / count) for i, x in enumerate(ordered))


def test_spread_makes_the_margins_of_a_skewed_pool_flatter_than_the_lot_does():
    rng = random.Random(1)
    prompts = {f"p{n}": [10 * rng.random() ** 4 for _ in range(24)] for n in range(40)}
    distances = {}
    for kind in ("lot", "spread"):
        rows, _ = drawn(answers(prompts), kind=kind, per_prompt=6)
        assert len(rows) == 6 * 40
        range_of = {name: max(own) - min(own) for name, own in prompts.items()}
        share = [row["margin"] / range_of[row["prompt_id"]] for row in rows]
        distances[kind] = distance_from_uniform(share)
    assert distances["spread"] < 0.1 < 0.2 < distances["lot"]


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(own=SCORES, count=st.integers(1, 5), seed=st.integers(0, 3))
def test_spread_has_a_margin_near_each_part_of_the_range(own, count, seed):
    every, _ = drawn(answers({"p0": own}), per_prompt=99)
    rows, _ = drawn(answers({"p0": own}), kind="spread", per_prompt=count, seed=seed)
    assert len(rows) == min(count, len(every))
    assert set(ids(rows)) <= set(ids(every))
    if len(every) >= 10 * count > 10 and rows:
        margins = [row["margin"] for row in every]
        gap = max(b - a for a, b in itertools.pairwise(sorted(margins)))
        part = (max(margins) - min(margins)) / count
        assert min(row["margin"] for row in rows) <= min(margins) + part + gap
        assert max(row["margin"] for row in rows) >= max(margins) - part - gap


def test_rso_accepts_as_often_as_worked_out_by_hand():
    # Points 2, 1, 0 pass in one of six equally likely orders; the top one is always accepted, and
    # a = exp(-1/T), b = exp(-2/T) are the odds of the others, so that of one sample
    # P(1 point) = a/3 (first) + a (1 - b)/6 (after the lowest), and so on.
    temperature, draws = 2.0, 6000
    a, b = math.exp(-1 / temperature), math.exp(-2 / temperature)
    wanted = {
        "2": 1 / 3 + ((1 - a) + (1 - b)) / 6 + (1 - a) * (1 - b) / 3,
        "1": a / 3 + a * (1 - b) / 6,
        "0": b / 3 + b * (1 - a) / 6,
    }
    assert sum(wanted.values()) == pytest.approx(1)
    found = Counter(
        name
        for seed in range(draws)
        for name in accepted({"0": 0.0, "1": 1.0, "2": 2.0}, temperature, 1, seed)
    )
    for name, share in wanted.items():
        spread = math.sqrt(share * (1 - share) / draws)
        assert abs(found[name] / draws - share) < 4 * spread, name


@given(own=SCORES, samples=st.integers(2, 12), seed=st.integers(0, 3))
def test_rso_keeps_as_many_as_asked_and_when_cold_the_best(own, samples, seed):
    points = {f"p/{number:02d}": score for number, score in enumerate(own)}
    for temperature in (1e-3, 1.0, 1e9):
        assert len(accepted(points, temperature, samples, seed)) == min(samples, len(own))
    cold = accepted(points, 1e-3, samples, seed)
    best = sorted(own, reverse=True)[:samples]
    assert sorted((points[name] for name in cold), reverse=True) == best


@settings(deadline=None, max_examples=40)  # the first call imports pyarrow.parquet
@given(prompts=POOLS, seed=st.integers(0, 3))
def test_rso_pairs_are_of_accepted_responses_alone(prompts, seed):
    options = {"temperature": 1.0, "samples": 3}
    rows, _ = drawn(answers(prompts), kind="rso", options=options, per_prompt=99, seed=seed)
    every, _ = drawn(answers(prompts), per_prompt=99)
    kept = set[str]()
    for name, own in prompts.items():
        points = {f"{name}/{number:02d}": score for number, score in enumerate(own)}
        kept |= accepted(points, 1.0, 3, seed)
    assert ids(rows) == [p["pair_id"] for p in every if {p["chosen_id"], p["rejected_id"]} <= kept]


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(
    prompts=POOLS,
    kind=st.sampled_from(sorted(KINDS)),
    matched=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_of_every_kind_order_and_other_prompts_change_nothing(prompts, kind, matched, order):
    rows = answers(prompts)
    options = {"kind": kind, "per_prompt": 2, "max_length_ratio": 3.0}
    first, facts = drawn(rows, **options, match_length=matched)
    order.shuffle(rows)
    assert drawn(rows, **options, match_length=matched) == (first, facts)
    every, _ = drawn(rows, per_prompt=99, max_length_ratio=3.0)
    assert set(ids(first)) <= set(ids(every)), "no pair over the ratio"
    assert max(Counter(row["prompt_id"] for row in first).values(), default=0) <= 2
    if not matched:
        (name,) = [*prompts][:1]
        alone, _ = drawn([row for row in rows if row["prompt_id"] == name], **options)
        assert alone == [row for row in first if row["prompt_id"] == name]


def test_the_share_of_opinions_by_hand():
    told = [
        *(("calm", "a", 5.0), ("calm", "a", 7.0), ("calm", "b", 5.0), ("calm", "b", 6.0)),
        *(("stern", "a", 2.0), ("stern", "b", 4.0), ("stern", "c", 3.0), ("stern", "c", None)),
    ]
    found = Opinions(said(*told))
    # calm: 5-5 tie, 5-6 lost, 7-5 won, 7-6 won: 2.5 of 4; stern: lost.
    assert found.share(["a"], ["b"]) == pytest.approx((2.5 / 4 + 0) / 2)
    assert found.share(["a"], ["c"]) is None, "stern alone, once each"
    assert found.share(["a"], ["d"]) is None
    # b and d read the same: what stern says of d is no second opinion.
    both = Opinions(said(*told, ("stern", "d", 1.0)))
    assert both.share(["a"], ["b", "d"]) == found.share(["a"], ["b"])
    assert both.share(["a", "c"], ["e", "b"]) == found.share(["a"], ["b"])


def test_a_text_that_came_twice_has_no_second_opinion(tmp_path):
    rows = pool({"p0": [("same", 2.0), ("same", 2.0), ("other", 1.0), ("other", 1.0)]})
    told = said(*(("verifier", row["response_id"], row["score"]) for row in rows))
    (pair,) = paired(tmp_path, rows, PairConfig(), told).read().to_pylist()
    assert pair["p_chosen"] is None


def test_the_share_of_comparisons_by_hand():
    # A wins when first, ties when second; once more it loses as the second.
    told = [("duel", "a", 1.0, "b"), ("duel", "b", 0.5, "a"), ("duel", "b", 1.0, "a")]
    assert Opinions(said(*told)).share(["a"], ["b"]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert Opinions(said(*told[:1])).share(["a"], ["b"]) is None
    assert Opinions(said(*told[:1], ("points", "a", 1.0), ("points", "b", 3.0))).share(
        ["a"], ["b"]
    ) == pytest.approx(1 / 2)


OPINION = st.lists(st.integers(1, 5).map(float), min_size=0, max_size=3)


@given(one=OPINION, other=OPINION)
def test_a_share_and_that_of_the_pair_turned_round_sum_to_one(one, other):
    told = [("judge", "a", score) for score in one] + [("judge", "b", score) for score in other]
    found = Opinions(said(*told))
    there, back = found.share(["a"], ["b"]), found.share(["b"], ["a"])
    if min(len(one), len(other)) < 2:
        assert there is back is None
    else:
        assert there + back == pytest.approx(1)
        wins = [(a > b) + (a == b) / 2 for a, b in itertools.product(one, other)]
        assert there == pytest.approx(statistics.mean(wins))


@settings(deadline=None, max_examples=60)  # the first call imports pyarrow.parquet
@given(
    told=st.lists(
        st.lists(st.integers(1, 4).map(float), min_size=1, max_size=3), min_size=2, max_size=6
    ),
    bound=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_the_filter_leaves_out_what_judges_are_unsure_of_and_nothing_else(told, bound):
    rows = answers({"p0": [statistics.fmean(points) for points in told]})
    opinions = said(
        *(("judge", f"p0/{n:02d}", score) for n, points in enumerate(told) for score in points)
    )
    every, _ = drawn(rows, opinions, per_prompt=99)
    kept, facts = drawn(rows, opinions, per_prompt=99, max_uncertainty=bound)
    wanted = [
        pair["pair_id"]
        for pair in every
        if pair["p_chosen"] is not None and 1 - pair["p_chosen"] <= bound + 1e-6
    ]
    assert ids(kept) == wanted
    if kept:
        assert facts["pairs_over_uncertainty"] == len(every) - len(kept)
        assert facts["pairs_with_opinions"] == len(kept)


def test_a_filter_that_leaves_no_pair_names_itself(tmp_path):
    rows = answers({"p0": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"none of 1 pairs has two opinions.*max_uncertainty=0.2"):
        paired(tmp_path, rows, PairConfig(max_uncertainty=0.2))
    rows = answers({"p0": [1.0, 5.0, 9.0]})
    for row, length in zip(rows, (1, 9, 2), strict=True):
        row["text"] = "x" * length
    with pytest.raises(UserError, match=r"pair.kind=adjacent takes none of 1 pairs"):
        paired(tmp_path, rows, PairConfig(kind="adjacent", max_length_ratio=2))


def test_prompts_that_a_filter_or_a_kind_empties_are_counted_and_said(tmp_path):
    rows = answers({"p0": [1.0, 5.0, 9.0], "p1": [1.0, 2.0]})
    for row, length in zip(rows, (1, 9, 2, 1, 1), strict=True):
        row["text"] = "xy"[row["number"] % 2] * length
    draft = paired(tmp_path, rows, PairConfig(kind="adjacent", per_prompt=1, max_length_ratio=2))
    assert draft.facts["prompts_lost_to_kind"] == 1
    assert any("none that pair.kind=adjacent takes" in note for note in draft.facts["notes"])


@pytest.mark.parametrize(
    ("client", "policy"), [("transformers", "policy"), ("openai", "the-model")]
)
def test_pairs_are_of_the_policys_or_the_sources_responses_as_asked(tmp_path, client, policy):
    rows = answers({"p0": [1.0, 2.0, 3.0, 4.0], "p1": [4.0, 3.0, 2.0, 1.0]})
    for row in rows:
        row["author"] = policy if row["number"] % 2 else "a person"
    made = {"client": client, "model": "the-model"}
    for authors, odd in (("policy", 1), ("source", 0)):
        config = PairConfig(authors=authors, per_prompt=99)
        draft = paired(tmp_path / authors, rows, config, settings=made)
        found = draft.read().to_pylist()
        assert len(found) == 2
        sides = [row[side] for row in found for side in ("chosen_id", "rejected_id")]
        assert {int(name[-2:]) % 2 for name in sides} == {odd}
        assert draft.facts["responses_of_other_authors"] == 4
    for row in rows:
        row["author"] = "a person"
    with pytest.raises(UserError, match=f"the policy is {policy}, and all 8 .* by a person"):
        paired(tmp_path / "none", rows, PairConfig(authors="policy"), settings=made)


@given(scores=SCORES)
def test_win_is_the_share_of_the_others_that_a_response_beats(scores):
    points = scaled(scores, "win")
    for place, (score, share) in enumerate(zip(scores, points, strict=True)):
        others = scores[:place] + scores[place + 1 :]
        wins = [(score > other) + (score == other) / 2 for other in others]
        assert share == pytest.approx(statistics.mean(wins))
    assert statistics.mean(points) == pytest.approx(0.5)
    assert scaled([7.0], "win") == [0.5]


class Backwards:
    """A construction from outside the package: the last by id comes first."""

    def __call__(self, pool, pairs, count, seed):
        return sorted(pairs, key=lambda pair: pair["pair_id"], reverse=True)


def test_a_construction_from_outside_the_package_is_named_by_its_place():
    rows = answers({"p0": [1.0, 2.0, 3.0]})
    found, _ = drawn(rows, kind="test_constructions:Backwards", per_prompt=1)
    assert ids(found) == ["p0/02>01"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("pair.kind=best_wurst", "Did you mean best_worst?"),
        ("pair.authors=polizy", "Did you mean policy?"),
        ("pair.max_uncertainty=1.5", "a share lies from 0 to 1"),
        ("pair.max_uncertainty=0.3", "score.kind=given has one of each response"),
        ("pair.authors=policy", "augment.client=replay samples none"),
        ("pair.options.temperature=0.5", "is not an option of pair.kind=lot"),
    ],
)
def test_settings_of_pairs_that_cannot_work_are_named(setting, problem):
    with pytest.raises(UserError) as error:
        read(["score.kind=given", "augment.client=replay", setting])
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("rso", {"temperature": 0.0}, "temperature must be a number above 0"),
        ("rso", {"samples": 1}, "samples must be at least 2"),
        ("low", {"deviations": math.inf}, "deviations must be a finite number"),
    ],
)
def test_options_that_cannot_work_are_named(kind, options, problem):
    (line,) = PairConfig(kind=kind, options=options).problems()
    assert problem in line


def graded(payload: dict[str, Any]) -> str:
    """An answer that depends on the seed, or points that depend on the answer and the asking."""
    asked = payload["messages"][-1]["content"]
    if "to grade" not in asked:
        return f"answer {payload['seed']} to {asked}"
    number = int(hashlib.sha256(f"{asked}{payload.get('seed')}".encode()).hexdigest(), 16)
    level = int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 4
    return json.dumps({"reason": "a coin said so", "score": 1 + level + number % 4})


@pytest.mark.slow  # a pipeline of its own, against a server
def test_what_a_judge_says_twice_reaches_the_dataset(tmp_path):
    from bpo_data.policy import save_policy
    from bpo_data.scratch import Scratch, make_policy

    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer 17"}]
    policy = make_policy([talk], Scratch(width=16, layers=1, heads=2, hidden=16), 0)
    save_policy(policy, tmp_path / "policy")
    with StubServer(reply=graded) as server:
        done = run(
            *arguments(tmp_path, tmp_path / "policy", server.url),
            *("score.options.repeats=3", "score.options.temperature=1", "pair.kind=spread"),
            *("pair.max_uncertainty=0.4", "pair.authors=policy"),
        )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("export-*/dataset")
    found = pq.read_table(folder / "train.parquet")["p_chosen"].to_pylist()
    assert all(0.6 - 1e-6 <= share <= 1 for share in found)
    assert any(share < 1 for share in found), found
