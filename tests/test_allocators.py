"""Depth rules: exact budgets, floors, caps, and allocations worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import in_plane, kept, pool_of, pools

from bpo_data.components.allocators import KINDS, Pool, largest_remainder, limits
from bpo_data.components.allocators.clusters import (
    Center,
    Clusters,
    Embedding,
    Far,
    Informative,
    Sample,
)
from bpo_data.components.allocators.lots import Breadth, Random, Uniform
from bpo_data.components.allocators.picking import Picker, members_of, quotas
from bpo_data.components.allocators.prompts import Marginal, PerPrompt

VARIANTS = {
    "clusters": [
        {"quota": "spread", "order": "cover"},
        {"quota": "snr", "order": "medium", "uniform": 0.5},
        {"quota": "sqrt", "order": "target"},
        {"quota": "equal", "order": "random"},
    ],
    "marginal": [{}, {"others": 1.0, "uniform": 0.5}, {"least": 1.0}],
    "norm": [{"which": which} for which in ("small", "medium", "large")],
    "sample": [{}, {"tau": 0.0}, {"tau": 1e9}],
    "per_prompt": [{}, {"tau": 1e-3}],
    "facility_location": [{}, {"block": 3}],
    "matching_pursuit": [{}, {"positive": False}],
    "d_optimal": [{}, {"ridge": 1e-9, "tolerance": 0.0}],
}
"""Options that kinds are tried with; every kind is tried with its defaults at least."""
RULES = [(kind, options) for kind in KINDS for options in VARIANTS.get(kind, [{}])]


@pytest.mark.parametrize(("kind", "options"), RULES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_rule_keeps_exactly_the_budget_within_floor_and_cap(kind, options, data):
    pool, rule = data.draw(pools()), KINDS[kind](**options)
    available = Counter(pool.prompt_id)
    floor, cap = limits(rule, data.draw(st.booleans()), data.draw(st.integers(1, 5)))
    room = sum(min(count, cap) for count in available.values())
    budget = data.draw(st.integers(len(available) if floor else 1, room))
    seed = data.draw(st.integers(0, 3))
    choice = rule(pool, budget, floor, cap, seed)
    assert len(choice.kept) == len(set(choice.kept)) == len(choice.reason) == budget
    depth = Counter(pool.prompt_id[row] for row in choice.kept)
    assert max(depth.values()) <= cap
    if floor:
        assert set(depth) == set(available)
        assert choice.reason.count("floor") == len(available)
    assert choice == KINDS[kind](**options)(pool, budget, floor, cap, seed), "another draw"
    if "quotas" in choice.facts:
        assert sum(choice.facts["quotas"]) <= budget


@given(pool=pools(), scale=st.sampled_from([0.125, 0.5, 2.0, 1024.0]))
def test_center_does_not_see_the_scale_of_distances(pool, scale):
    budget = len(set(pool.prompt_id)) + (len(pool.pair_id) - len(set(pool.prompt_id))) // 2
    larger = replace(pool, distance=pool.distance * np.float32(scale))
    assert Center()(pool, budget, True, 9, 0).kept == Center()(larger, budget, True, 9, 0).kept


@given(pool=pools())
def test_center_with_one_cluster_and_no_floor_keeps_the_pairs_nearest_the_mean(pool):
    one = replace(pool, cluster=np.zeros_like(pool.cluster))
    budget = max(1, len(pool.pair_id) // 2)
    nearest = sorted(range(len(pool.pair_id)), key=lambda row: (one.distance[row], row))
    assert set(Center()(one, budget, False, 99, 0).kept) == set(nearest[:budget])


def test_center_by_hand():
    # Cluster 0 holds 6 pairs (mean distance .35), cluster 1 holds 2 (mean .3); budget 4, so the
    # quotas are 3 and 1. Floors: a/00 (.1/.35), b/00 (.2/.3 in cluster 1 against .5/.35).
    pool = pool_of(
        [
            ("a", 0, 0.1), ("a", 0, 0.2), ("a", 0, 0.3), ("a", 0, 0.4),
            ("b", 1, 0.2), ("b", 0, 0.5), ("b", 0, 0.6), ("b", 1, 0.4),
        ]
    )  # fmt: skip
    choice = Center()(pool, 4, True, 9, 0)
    assert [pool.pair_id[row] for row in choice.kept] == ["a/00", "b/00", "a/01", "a/02"]
    assert choice.reason == ["floor", "floor", "quota", "quota"]


def test_center_depth_follows_the_clusters_not_the_prompts():
    # Prompt a's pairs all lie at the heart of their clusters, prompt b's at the rim.
    rows = [("a", n % 2, 0.01 * (n + 1)) for n in range(4)]
    rows += [("b", n % 2, 1.0 + n) for n in range(4)]
    pool = pool_of(rows)
    depth = Counter(pool.prompt_id[row] for row in Center()(pool, 5, True, 9, 0).kept)
    assert depth == {"a": 4, "b": 1}


def test_caps_spill_over_to_the_nearest_that_remain():
    pool = pool_of([("a", 0, 0.1), ("a", 0, 0.2), ("a", 0, 0.3), ("b", 1, 0.5), ("b", 1, 0.6)])
    choice = Center()(pool, 2, False, 1, 0)
    assert sorted(pool.prompt_id[row] for row in choice.kept) == ["a", "b"]
    assert Counter(choice.reason)["spill"] <= 1


def test_far_and_informative_turn_the_order_of_center_around():
    distances = [("a", 0, 0.1), ("a", 0, 0.3), ("a", 0, 0.2), ("b", 0, 0.5), ("b", 0, 0.4)]
    pool = pool_of(distances, informativeness=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert kept(pool, Center()(pool, 3, True, 9, 0)) == ["a/00", "b/01", "a/02"]
    assert kept(pool, Far()(pool, 3, True, 9, 0)) == ["b/00", "a/01", "b/01"]
    assert kept(pool, Informative()(pool, 3, True, 9, 0)) == ["b/01", "a/02", "b/00"]


def test_sample_at_tau_zero_is_center():
    pool = pool_of([(f"p{n % 7}", n % 3, (n * 37 % 64) / 64) for n in range(40)])
    assert Sample(tau=0.0)(pool, 20, True, 9, 5).kept == Center()(pool, 20, True, 9, 0).kept


def test_sample_draws_by_the_weights_it_names():
    # Distances 0.5 and 1.5 with mean 1: weights e^-0.5 and e^-1.5 at tau 1, so the nearer of the
    # two is drawn with probability 1 / (1 + e^-1) = 0.731; standard deviation of 2,000: 0.0099.
    pool = pool_of([("a", 0, 0.5), ("b", 0, 1.5)])
    near = sum(Sample(tau=1.0)(pool, 1, False, 1, seed).kept == [0] for seed in range(2000)) / 2000
    assert near == pytest.approx(0.731, abs=0.05)


@pytest.mark.parametrize(
    ("quota", "shares"),
    [
        # Clusters of 16, 4 and 4 pairs, mean squared distances 0.25, 0.25 and 0.75, budget 12.
        ("proportional", [8, 2, 2]),
        ("sqrt", [6, 3, 3]),
        ("equal", [4, 4, 4]),
        # 16 * .5, 4 * .5, 4 * .866: 12 * (8, 2, 3.46) / 13.46 = 7.13, 1.78, 3.09.
        ("spread", [7, 2, 3]),
        # 16 * .75, 4 * .75, 4 * .25: 12 * (12, 3, 1) / 16 = 9, 2.25, 0.75.
        ("snr", [9, 2, 1]),
    ],
)
def test_quotas_by_hand(quota, shares):
    rows = [(f"p{n:02d}", 0, 0.5) for n in range(16)] + [(f"q{n}", 1, 0.5) for n in range(4)]
    rows += [(f"r{n}", 2, 0.75**0.5) for n in range(4)]
    pool = pool_of(rows)
    choice = Clusters(quota=quota)(pool, 12, False, 9, 0)
    assert choice.facts["quotas"] == shares
    assert np.bincount(pool.cluster[choice.kept]).tolist() == shares


def test_orders_inside_a_cluster_by_hand():
    pool = in_plane([("a", 0), ("b", 10), ("c", 30), ("d", 50), ("e", 65)])
    by_order = {
        order: kept(pool, Clusters(order=order)(pool, 3, False, 9, 0))
        for order in ("near", "medium", "far", "cover")
    }
    # The mean points to 30.9 degrees.
    assert by_order["near"] == ["c/00", "d/00", "b/00"]
    assert by_order["far"] == ["e/00", "a/00", "b/00"]
    # The third of five, then the second (d) and the fourth (a): ties go to the lower id.
    assert by_order["medium"] == ["b/00", "a/00", "d/00"]
    # c first, then e (35 from c against 30 for a), then a.
    assert by_order["cover"] == ["c/00", "e/00", "a/00"]


def test_a_uniform_share_is_dealt_before_the_quotas():
    pool = pool_of([("a", 0, n / 10) for n in range(1, 5)] + [("b", 0, n) for n in range(1, 5)])
    depth = {
        share: Counter(
            pool.prompt_id[row] for row in Clusters(uniform=share)(pool, 6, False, 9, 0).kept
        )
        for share in (0.0, 0.67, 1.0)
    }
    assert depth == {0.0: {"a": 4, "b": 2}, 0.67: {"a": 4, "b": 2}, 1.0: {"a": 3, "b": 3}}
    choice = Clusters(uniform=0.67)(pool, 6, True, 9, 0)
    assert choice.reason == ["floor", "floor", "uniform", "uniform", "quota", "quota"]


def test_embedding_clusters_what_pairs_say_and_not_their_gradients():
    pool = pool_of(
        [(f"p{n}", n % 2, 0.1 * n) for n in range(8)],
        embeddings=[[1, 0]] * 3 + [[0, 1]] * 5,
    )  # fmt: skip
    assert Embedding(k=2)(pool, 4, False, 9, 0).facts["quotas"] in ([2, 2], [1, 3], [3, 1])
    # Equal texts lie on their centre, so the first ids of each are kept: shares 1.5 and 2.5 of 4.
    names = kept(pool, Embedding(k=2)(pool, 4, False, 9, 0))
    assert {"p0/00", "p3/00", "p4/00"} <= set(names)


def test_breadth_is_one_pair_for_each_prompt_whatever_the_floor_says():
    pool = pool_of([(f"p{n}", 0, 0.1) for n in range(6) for _ in range(3)])
    rule = Breadth()
    assert limits(rule, True, 3) == (False, 1)
    depth = Counter(pool.prompt_id[row] for row in rule(pool, 4, False, 1, 0).kept)
    assert sorted(depth.values()) == [1, 1, 1, 1]


def test_per_prompt_depths_by_hand():
    # Four gradients (1, 0) of a, two (0, 1) of b: the centre is (2/3, 1/3), a lies sqrt(2)/3 from
    # it and b 2 sqrt(2)/3, their mean sqrt(2)/2. Weights e^(-2/3 / tau) and e^(-4/3 / tau).
    pool = in_plane([("a", 0)] * 4 + [("b", 90)] * 2)
    depths = {
        tau: Counter(pool.prompt_id[row] for row in PerPrompt(tau)(pool, 5, True, 9, 0).kept)
        for tau in (1.0, 0.25)
    }
    # Three are left after the floors. tau 1: shares .661 and .339 are 1.98 and 1.02;
    # tau .25: shares .935 and .065 are 2.81 and 0.19.
    assert depths == {1.0: {"a": 3, "b": 2}, 0.25: {"a": 4, "b": 1}}


def test_per_prompt_gives_what_a_cap_leaves_open_to_the_others():
    pool = in_plane([("a", 0)] * 4 + [("b", 90)] * 3)
    depth = Counter(pool.prompt_id[row] for row in PerPrompt(0.01)(pool, 5, True, 3, 0).kept)
    assert depth == {"a": 3, "b": 2}


def test_marginal_stops_deepening_where_a_pair_brings_nothing_new():
    # The mean points to 18.6 degrees: floors are c's 30 degrees, then 0 degrees of a and of b. All
    # of b's 90 degrees is new then, a quarter of c's 0 degrees (the squared sine of 30), and
    # nothing of a's other pairs and of b's 45 degrees: of these the one nearest the mean is taken.
    pool = in_plane([("a", 0)] * 3 + [("b", 0), ("b", 90), ("b", 45)] + [("c", 0), ("c", 30)])
    choice = Marginal()(pool, 6, True, 9, 0)
    assert kept(pool, choice) == ["c/01", "a/00", "b/00", "b/01", "c/00", "a/01"]
    assert choice.reason == ["floor"] * 3 + ["quota"] * 2 + ["spill"]


def test_marginal_can_count_what_other_prompts_cover():
    # After the floors e0, e1 and e2 both pairs left are new to their prompts. That of b is nearer
    # its centre, but it is a's direction.
    pool = pool_of(
        [("a", 0, 0.1), ("b", 0, 0.1), ("b", 0, 0.2), ("c", 0, 0.1), ("c", 0, 0.3)],
        gradients=np.eye(4)[[0, 1, 0, 2, 3]],
    )
    assert kept(pool, Marginal(others=0.0)(pool, 4, True, 9, 0))[3] == "b/01"
    assert kept(pool, Marginal(others=1.0)(pool, 4, True, 9, 0))[3] == "c/01"


@given(pool=pools(flavours=("all different", "some equal")))
def test_marginal_values_are_what_gram_schmidt_leaves(pool):
    from bpo_data.components.allocators.prompts import News

    rows = pool.gradients().astype(np.float64)
    picker = Picker(pool, 9)
    news = News(pool.gradients(), picker.prompt, np.arange(len(rows)), 0.0, 0.1)
    chosen = list(range(0, len(rows), 2))
    news.keep(chosen)
    for members in members_of(picker.prompt):
        basis = np.linalg.qr(rows[[row for row in members if row in chosen]].T)[0]
        mine = [row for row in members if row in chosen]
        if mine and np.linalg.matrix_rank(rows[mine], tol=1e-3) == min(len(mine), 6):
            left = np.square(rows[members] - rows[members] @ basis @ basis.T).sum(axis=1)
            assert news.own[members] == pytest.approx(left, abs=1e-3)


def test_quotas_count_what_groups_have_and_how_much_they_hold():
    pool = pool_of([(f"p{n}", 0 if n < 2 else 1, 0.1) for n in range(8)])
    picker = Picker(pool, 9)
    picker.fill([2, 3, 4], 3, "floor")
    # Equal shares of 6 are 3 and 3, but the first holds 2: 2 and 4, of which 3 are there.
    assert quotas(np.ones(2), pool.cluster, picker, 6).tolist() == [2, 1]


def test_uniform_depths_differ_by_at_most_one_where_pairs_suffice():
    pool = pool_of([(f"p{n}", 0, 0.1) for n in range(7) for _ in range(4)])
    depth = Counter(pool.prompt_id[row] for row in Uniform()(pool, 17, True, 9, 0).kept)
    assert sorted(depth.values()) == [2, 2, 2, 2, 3, 3, 3]


def test_uniform_shares_what_a_short_prompt_cannot_take():
    pool = pool_of([("a", 0, 0.1)] + [("b", 0, 0.1)] * 4 + [("c", 0, 0.1)] * 4)
    depth = Counter(pool.prompt_id[row] for row in Uniform()(pool, 7, True, 9, 0).kept)
    assert depth == {"a": 1, "b": 3, "c": 3}


def test_random_draws_every_pair_equally_often():
    pool = pool_of([("a", 0, 0.1)] * 4 + [("b", 1, 9.0)] * 4)
    drawn = Counter(row for seed in range(800) for row in Random()(pool, 4, False, 9, seed).kept)
    assert len(drawn) == 8
    # 400 expected, standard deviation sqrt(800 / 4) = 14.1: five of them on either side.
    assert all(330 < count < 470 for count in drawn.values()), drawn


def pool_by_lot(small: int, large: int) -> Pool:
    """40 prompts with 4 responses and 40 with 8, each brought down to 4 pairs by the pair stage."""
    from bpo_data.stages.pair import PairConfig, pairs_of
    from bpo_data.tables import lot

    rows = []
    for number in range(80):
        count = small if number % 2 else large
        responses = [
            {"response_id": f"p{number:02d}/{n:02d}", "number": n, "score": float(n), "text": ""}
            for n in range(count)
        ]
        pairs = pairs_of(f"p{number:02d}", responses, PairConfig())
        drawn = sorted(pairs, key=lambda pair: lot(0, "pair", pair["pair_id"]))[:4]
        rows += [(pair["pair_id"], pair["prompt_id"]) for pair in drawn]
    rows.sort()
    pool = pool_of([(prompt, 0, 1.0) for _, prompt in rows])
    return replace(pool, pair_id=[pair for pair, _ in rows])


def test_the_draw_of_the_pair_stage_does_not_come_back_in_the_next():
    pool = pool_by_lot(4, 8)
    kept = Random()(pool, 160, False, 9, 0).kept
    from_small = sum(int(pool.prompt_id[row][1:]) % 2 for row in kept)
    # 80 expected of 160; hypergeometric with a standard deviation of 6.3.
    assert 55 < from_small < 105


def test_depth_does_not_decide_the_split():
    from bpo_data.components.exporters.dataset import draw

    pool = pool_of([(f"p{n:03d}", 0, 0.1) for n in range(200) for _ in range(4)])
    kept = Uniform()(pool, 300, True, 9, 0).kept
    prompts = [pool.prompt_id[row] for row in kept]
    rows = pa.table({"prompt_id": sorted(prompts), "kept": [True] * len(prompts)})
    splits = draw(lambda: [rows], test_share=0.3, seed=0).splits(prompts)
    depth = Counter(prompts)
    in_test = {name for name, split in zip(prompts, splits, strict=True) if split == "test"}
    mean = np.mean([depth[name] for name in in_test])
    assert 1.25 < mean < 1.75, "the prompts with one more pair are drawn again for the test split"


@given(
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any),
    total=st.integers(0, 100),
)
def test_largest_remainder_adds_up_and_keeps_quota(weights, total):
    shares = largest_remainder(np.array(weights), total)
    exact = np.array(weights) * total / sum(weights)
    assert shares.sum() == total
    assert (shares >= np.floor(exact - 1e-9)).all()
    assert (shares <= np.ceil(exact + 1e-9)).all()


@given(data=st.data())
def test_largest_remainder_fills_whatever_room_there_is(data):
    room = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6)))
    total = data.draw(st.integers(0, 60))
    shares = largest_remainder(np.maximum(room, 1), total, room)
    assert (shares <= room).all()
    assert shares.sum() == min(total, room.sum())


def test_largest_remainder_by_hand():
    assert largest_remainder(np.array([6, 2]), 4).tolist() == [3, 1]
    assert largest_remainder(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]
    assert largest_remainder(np.array([10, 1, 1]), 6, np.array([2, 9, 9])).tolist() == [2, 2, 2]
