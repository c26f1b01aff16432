"""Depth rules: exact budgets, floors, caps, and allocations worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.components.allocators import (
    KINDS,
    Center,
    Pool,
    Random,
    Uniform,
    largest_remainder,
)


def pool_of(rows: list[tuple[str, int, float]]) -> Pool:
    """(prompt, cluster, distance) rows, pair ids made from the order within the prompt."""
    seen: Counter[str] = Counter()
    named = []
    for prompt, cluster, distance in rows:
        named.append((f"{prompt}/{seen[prompt]:02d}", prompt, cluster, distance))
        seen[prompt] += 1
    named.sort()
    return Pool(
        [row[0] for row in named],
        [row[1] for row in named],
        np.array([row[2] for row in named], dtype=np.int32),
        np.array([row[3] for row in named], dtype=np.float32),
    )


@st.composite
def pools(draw) -> Pool:
    depths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    clusters = draw(st.integers(1, 5))
    rows = [
        (
            f"p{number:02d}",
            draw(st.integers(0, clusters - 1)),
            draw(st.integers(0, 128)) / 64,
        )
        for number, depth in enumerate(depths)
        for _ in range(depth)
    ]
    used = sorted({row[1] for row in rows})
    return pool_of([(prompt, used.index(cluster), far) for prompt, cluster, far in rows])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_rule_keeps_exactly_the_budget_within_floor_and_cap(kind, data):
    pool = data.draw(pools())
    available = Counter(pool.prompt_id)
    cap = data.draw(st.integers(1, 5))
    floor = data.draw(st.booleans())
    room = sum(min(count, cap) for count in available.values())
    budget = data.draw(st.integers(len(available) if floor else 1, room) if room else st.just(0))
    choice = KINDS[kind]()(pool, budget, floor, cap, data.draw(st.integers(0, 3)))
    assert len(choice.kept) == len(set(choice.kept)) == len(choice.reason) == budget
    depth = Counter(pool.prompt_id[row] for row in choice.kept)
    assert max(depth.values()) <= cap
    if floor:
        assert set(depth) == set(available)


@pytest.mark.parametrize("kind", KINDS)
@given(pool=pools(), seed=st.integers(0, 5))
def test_the_same_seed_gives_the_same_choice(kind, pool, seed):
    budget = len(set(pool.prompt_id))
    one, other = (KINDS[kind]()(pool, budget, True, 9, seed) for _ in range(2))
    assert one == other


@given(pool=pools(), scale=st.sampled_from([0.125, 0.5, 2.0, 1024.0]))
def test_center_does_not_see_the_scale_of_distances(pool, scale):
    budget = len(set(pool.prompt_id)) + (len(pool.pair_id) - len(set(pool.prompt_id))) // 2
    larger = Pool(pool.pair_id, pool.prompt_id, pool.cluster, pool.distance * np.float32(scale))
    assert Center()(pool, budget, True, 9, 0).kept == Center()(larger, budget, True, 9, 0).kept


@given(pool=pools())
def test_center_with_one_cluster_and_no_floor_keeps_the_pairs_nearest_the_mean(pool):
    one = Pool(pool.pair_id, pool.prompt_id, np.zeros_like(pool.cluster), pool.distance)
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
            {"response_id": f"p{number:02d}/{n:02d}", "number": n, "score": float(n)}
            for n in range(count)
        ]
        pairs = pairs_of(f"p{number:02d}", responses, PairConfig())
        drawn = sorted(pairs, key=lambda pair: lot(0, "pair", pair["pair_id"]))[:4]
        rows += [(pair["pair_id"], pair["prompt_id"]) for pair in drawn]
    rows.sort()
    return Pool(
        [row[0] for row in rows],
        [row[1] for row in rows],
        np.zeros(len(rows), dtype=np.int32),
        np.ones(len(rows), dtype=np.float32),
    )


def test_the_draw_of_the_pair_stage_does_not_come_back_in_the_next():
    pool = pool_by_lot(4, 8)
    kept = Random()(pool, 160, False, 9, 0).kept
    from_small = sum(int(pool.prompt_id[row][1:]) % 2 for row in kept)
    # 80 expected of 160; hypergeometric with a standard deviation of 6.3.
    assert 55 < from_small < 105


def test_depth_does_not_decide_the_split():
    from bpo_data.stages.export import ExportConfig, split_of

    pool = pool_of([(f"p{n:03d}", 0, 0.1) for n in range(200) for _ in range(4)])
    kept = Uniform()(pool, 300, True, 9, 0).kept
    prompts = [pool.prompt_id[row] for row in kept]
    splits = split_of(prompts, ExportConfig(test_share=0.3))
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
