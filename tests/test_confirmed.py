"""The rule that weighs a judge's margin with what other prompts' pairs say of it."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pools import kept, pool_of, pools

from bpo_data.components.allocators import confirmed
from bpo_data.components.allocators.confirmed import Confirmed, expected
from bpo_data.components.allocators.ranked import Margin
from bpo_data.components.embedders import unit


def by_loops(gradients, margin, prompt, power):
    """The formula of the docstring, a pair at a time."""
    found = []
    for p in range(len(margin)):
        told = weight = 0.0
        for q in range(len(margin)):
            if prompt[q] != prompt[p]:
                cosine = float(gradients[p] @ gradients[q])
                say = abs(cosine) ** power / sum(other == prompt[q] for other in prompt)
                told += np.sign(cosine) * say * margin[q]
                weight += say
        found.append(told / weight if weight else 0.0)
    return np.array(found)


@given(
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=12).map(sorted),
    power=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_what_others_lead_one_to_expect_is_the_formula(prompt, power, seed):
    prompt = np.unique(prompt, return_inverse=True)[1]
    random = np.random.default_rng(seed)
    rows = unit(random.standard_normal((len(prompt), 3)).astype(np.float32))
    margin = random.uniform(0.1, 9, len(prompt))
    with mock.patch.object(confirmed, "BLOCK", 5):
        found = expected(rows, margin, prompt, power)
    np.testing.assert_allclose(found, by_loops(rows, margin, prompt, power), atol=1e-4)


@given(arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=32)), st.integers(0, 5))
def test_a_pair_turned_round_expects_the_opposite(rows, place):
    rows, margin = unit(rows), np.arange(1.0, 7.0)
    prompt = np.arange(6)
    turned = rows.copy()
    turned[place] *= -1
    before, after = (expected(one, margin, prompt, 4)[place] for one in (rows, turned))
    assert after == pytest.approx(-before, abs=1e-5)


def test_a_large_margin_that_the_others_contradict_falls_behind():
    """b's verdict is the largest, but a and c say the same thing twice, and b its opposite."""
    rows = [("a", 0, 0.1), ("b", 0, 0.1), ("c", 0, 0.1), ("d", 0, 0.1)]
    gradients = np.array([[1, 0], [-1, 0], [1, 0], [0, 1]])
    pool = pool_of(rows, margin=[3.0, 5.0, 4.0, 1.5], gradients=gradients)
    # Expected: a (4 - 5) / 2 = -0.5, b -(3 + 4) / 2 = -3.5, c (3 - 5) / 2 = -1, d nothing: 0.
    assert Confirmed().figure(pool, 0) == pytest.approx([2.5, 1.5, 3.0, 1.5])
    assert kept(pool, Confirmed()(pool, 2, False, 9, 0)) == ["c/00", "a/00"]
    assert kept(pool, Margin()(pool, 2, False, 9, 0)) == ["b/00", "c/00"]


def test_a_prompts_own_pairs_have_no_say():
    rows = [("a", 0, 0.1)] * 3
    pool = pool_of(rows, margin=[1.0, 2.0, 3.0], gradients=np.tile([1.0, 0.0], (3, 1)))
    assert Confirmed().figure(pool, 0) == pytest.approx([1, 2, 3])


@given(pools(), st.data())
def test_without_weight_it_is_margin(pool, data):
    budget = data.draw(st.integers(1, len(pool.pair_id)))
    found = Confirmed(weight=0.0)(pool, budget, False, 99, 0)
    assert found == Margin()(pool, budget, False, 99, 0)


@pytest.mark.parametrize(
    "options", [{"power": 0}, {"weight": -1.0}, {"weight": float("inf")}, {"weight": float("nan")}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Confirmed(**options)
