"""What may become a pair."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_data.components.scales import scaled
from bpo_data.errors import UserError
from bpo_data.stages.pair import PairConfig, collapse, pairs_of


def responses(*scores: float, texts: list[str] | None = None) -> list[dict]:
    return [
        {
            "response_id": f"p/{number:02d}",
            "number": number,
            "text": texts[number] if texts else f"text {number}",
            "score": score,
        }
        for number, score in enumerate(scores)
    ]


@given(scores=st.lists(st.integers(1, 10), min_size=2, max_size=7), floor=st.integers(0, 4))
def test_pairs_are_all_ordered_pairs_above_the_margin_floor(scores, floor):
    found = pairs_of("p", responses(*scores), PairConfig(min_margin=floor))
    wanted = {
        (f"p/{a:02d}", f"p/{b:02d}")
        for a, b in itertools.permutations(range(len(scores)), 2)
        if scores[a] - scores[b] > floor
    }
    assert {(pair["chosen_id"], pair["rejected_id"]) for pair in found} == wanted
    assert len(found) == len(wanted)
    assert all(pair["margin"] > floor for pair in found)


def test_all_equal_scores_give_no_pair():
    assert pairs_of("p", responses(5, 5, 5), PairConfig()) == []


def test_a_pair_id_reads_back_to_its_responses():
    (pair,) = pairs_of("3f2a", responses(1, 7), PairConfig())
    assert pair["pair_id"] == "3f2a/01>00"


def test_responses_that_read_the_same_become_one_with_their_mean_score():
    texts = ["an answer", "an answer \n", "cafe\u0301", "caf\u00e9", "another"]
    rows = collapse(responses(2, 4, 9, 9, 1, texts=texts))
    assert [(row["number"], row["score"]) for row in rows] == [(0, 3), (2, 9), (4, 1)]


def test_a_pair_carries_the_scores_its_order_comes_from():
    # One text rated 1 and 9 by two people counts 5, and beats a 4 of another.
    (pair,) = pairs_of(
        "p", collapse(responses(1, 4, 9, texts=["same", "other", "same"])), PairConfig()
    )
    assert pair["pair_id"] == "p/00>01"
    assert (pair["score_chosen"], pair["score_rejected"], pair["margin"]) == (5, 4, 1)


def test_a_pair_and_its_reverse_cancel():
    rows = collapse(responses(1, 0, 0, 1, texts=["a", "b", "a", "b"]))
    assert pairs_of("p", rows, PairConfig()) == []


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    scale=st.sampled_from(["rank", "logit"]),
)
def test_a_scale_keeps_the_order_and_the_ties(scores, scale):
    points = scaled(scores, scale)
    for (a, x), (b, y) in itertools.combinations(zip(scores, points, strict=True), 2):
        assert (x < y) <= (a < b)
        if scale == "rank":
            assert (a < b) == (x < y)


def test_scales_by_hand():
    assert scaled([0.1, 0.9, 0.1, 0.5], "rank") == [0, 2, 0, 1]
    assert scaled([0.5, 0.75], "logit") == [0, pytest.approx(math.log(3))]
    assert scaled([0, 1], "logit")[1] == pytest.approx(math.log(1e6), rel=1e-5)


def test_logits_of_points_are_refused():
    with pytest.raises(UserError, match=r"scale=logit needs scores in \[0, 1\]; there is one of 7"):
        scaled([0.5, 7], "logit")
