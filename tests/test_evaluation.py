"""What an evaluation measures besides points: length, diversity, divergence, ranking, opponents."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import expit

from bpo_data.errors import UserError
from bpo_data.evaluation import opponent
from bpo_data.evaluation.contest import longer
from bpo_data.evaluation.divergence import divergence, ratio_by_prompt
from bpo_data.evaluation.diversity import diversity
from bpo_data.evaluation.lengths import FEWEST, length_controlled
from bpo_data.evaluation.ranking import pair_accuracy, reference_ranking
from bpo_data.generation import sample
from bpo_data.pipelines import config as command_line
from bpo_data.pipelines import costs
from bpo_data.policy import Policy, encode, prompt_tokens, save_policy
from bpo_data.report import evaluation
from bpo_data.scratch import Scratch, make_policy
from bpo_data.stages.evaluate import EvaluateConfig, outside
from bpo_data.statistics import share_by_prompt

DIFFERENCES = st.lists(st.integers(1, 400), min_size=2, max_size=20, unique=True)
WORTHS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6)


def length_rows(pairs: list[tuple[float, float]]) -> list[tuple[str, float, float]]:
    return [(f"p{place}", worth, by) for place, (worth, by) in enumerate(pairs)]


@settings(max_examples=30, deadline=None)
@given(DIFFERENCES)
def test_wins_by_length_alone_are_half_at_equal_length(differences):
    rows = [(float(sign > 0), float(sign * by)) for by in differences for sign in (1, -1)]
    found = length_controlled(length_rows(rows[: FEWEST - 2]))
    assert found.mean == pytest.approx(0.5, abs=1e-4)


def test_wins_by_length_of_a_policy_that_mostly_writes_more_are_about_half_at_equal_length():
    drawn = np.random.default_rng(2).normal(15, 25, 400)
    rows = length_rows([(float(by > 0), float(by)) for by in drawn])
    raw, found = np.mean(drawn > 0), length_controlled(rows)
    assert raw > 0.65
    assert found.low < 0.5 < found.high
    assert abs(found.mean - 0.5) < 0.06
    few = rows[:FEWEST]
    assert length_controlled(few) == length_controlled(few) != length_controlled(few, seed=1)


@settings(max_examples=30, deadline=None)
@given(WORTHS, DIFFERENCES)
def test_wins_independent_of_length_keep_their_rate(worths, differences):
    signed = [-differences[0], *differences[1:]]
    rows = [(f"p{n}", worth, float(by)) for n, worth in enumerate(worths) for by in signed]
    assert length_controlled(rows).mean == pytest.approx(np.mean(worths), abs=1e-4)


def test_no_win_rate_at_equal_length_where_one_side_is_always_longer():
    assert length_controlled(length_rows([(1.0, 3.0), (0.0, 9.0), (0.5, 4.0)])) is None
    assert length_controlled([]) is None
    assert length_controlled(length_rows([(1.0, 0.0), (0.5, 0.0)])).mean == 0.75
    few = length_controlled(length_rows([(1.0, 1.0), (0.0, -1.0)]))
    assert (few.low, few.high, few.count) == (-math.inf, math.inf, 2)


def test_prompts_count_equally_at_equal_length_too():
    rows = [("p", 1.0, by) for by in (-5.0, 5.0) * 9] + [("q", 0.0, by) for by in (-5.0, 5.0)]
    assert length_controlled(rows).mean == pytest.approx(0.5, abs=1e-4)


def test_the_interval_at_equal_length_is_that_of_a_mean_where_no_length_differs():
    drawn = np.random.default_rng(3)
    rows = [
        (f"p{n}", float(drawn.random() < rate), 0.0)
        for n, rate in enumerate(drawn.beta(2, 1, 200))
        for _ in range(1 + n % 3)
    ]
    found, plain = length_controlled(rows), share_by_prompt(row[:2] for row in rows)
    assert found.mean == pytest.approx(plain.mean)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.015)


def test_the_rate_at_equal_length_is_that_of_the_documented_likelihood():
    worth, by = np.array([1, 1, 0.5, 0, 1, 0.5]), np.array([30.0, -4.0, 9.0, -20.0, 2.0, 0.0])

    def loss(both: np.ndarray) -> float:
        margin = both[0] + both[1] * np.tanh(by / np.std(by))
        likely = worth * np.log(expit(margin)) + (1 - worth) * np.log(expit(-margin))
        return float(both[1] ** 2 / 2 - likely.sum())

    best = optimize.minimize(loss, np.zeros(2), tol=1e-9).x
    assert best[1] > 0.5, "the longer wins"
    found = length_controlled(length_rows(list(zip(worth, by, strict=True))))
    assert found.mean == pytest.approx(expit(best[0]), abs=1e-4)


def test_length_is_in_characters_and_of_the_trained_policy():
    row = {"prompt_id": "p", "text_sft": "ab", "text_trained": "äöüßx", "winner": "tie"}
    assert longer(row) == ("p", 0.5, 3.0)


def test_student_and_the_bootstrap_over_prompts_give_the_same_interval():
    drawn = np.random.default_rng(4)
    rate = drawn.beta(3, 2, 300)
    rows = [(f"p{place}", float(drawn.random() < p)) for place, p in enumerate(rate) for _ in "ab"]
    means = np.array([value for _, value in rows]).reshape(-1, 2).mean(axis=1)
    found = stats.bootstrap((means,), np.mean, n_resamples=4000, rng=0).confidence_interval
    ours = share_by_prompt(rows)
    assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=0.003)


def test_diversity_by_hand():
    # words: a b a | b a ; bigrams: ab ba | ba ; trigrams: aba
    found = diversity(["a b  a", "b\na", ""])
    entropy = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert found == {
        "words": 5,
        "distinct_1": 2 / 5,
        "distinct_2": round(2 / 3, 4),
        "distinct_3": 1.0,
        "entropy": round(entropy, 4),
    }
    assert diversity(["one", "one"])["distinct_2"] is None
    assert diversity(["", " "]) is None
    assert diversity(["数据数"])["words"] == 3, "no spaces: characters"


def small(seed: int, letters: str = "ab cd ef") -> Policy:
    torch.set_num_threads(1)
    talks = [[{"role": "user", "content": letters}, {"role": "assistant", "content": letters}]]
    size = Scratch(vocabulary=300, width=16, layers=1, heads=2, hidden=16, positions=64)
    return make_policy(talks, size, seed)


def test_the_divergence_of_one_token_responses_is_near_the_exact_one():
    policy, reference = small(1), small(2)
    prompts = [({"role": "user", "content": text},) for text in ("ab", "cd cd", "e")]
    exact = []
    for prompt in prompts:
        ids = torch.tensor([prompt_tokens(policy.tokenizer, prompt)])
        with torch.no_grad():
            ours, theirs = (
                one.model(ids).logits[0, -1].double().log_softmax(-1) for one in (policy, reference)
            )
        exact.append((ours.exp() * (ours - theirs)).sum().item())
    asked = [
        {"prompt_id": f"{place}/{draw}", "prompt": prompt}
        for place, prompt in enumerate(prompts)
        for draw in range(400)
    ]
    drawn = sample(
        policy, [row["prompt"] for row in asked], list(range(len(asked))), max_new_tokens=1,
        temperature=1.0, top_p=1.0, batch_rows=512,
    )  # fmt: skip
    found = divergence(policy, reference, asked, drawn)
    error = (found.per_response.high - found.per_response.low) / 2 / 1.96
    assert abs(found.per_response.mean - np.mean(exact)) < 3.5 * error
    assert 0 < error < 0.2 * np.mean(exact)
    assert found.per_token.mean == pytest.approx(found.per_response.mean), "a token each"
    assert found.per_token.high == pytest.approx(found.per_response.high)
    itself = divergence(policy, policy, asked[:9], drawn[:9])
    assert itself.per_response.mean == itself.per_response.low == 0
    assert divergence(policy, reference, [], []) is None


def test_nats_per_token_are_all_nats_over_all_tokens():
    found = ratio_by_prompt(["p", "p", "q"], [1.0, 2.0, 5.0], [2, 2, 4])
    assert found.mean == 8 / 8
    # residuals 3 - 4 and 5 - 4 over the mean of 4 tokens a prompt: +-1/4
    half = stats.t.ppf(0.975, 1) * np.std([-0.25, 0.25], ddof=1) / 2**0.5
    assert found.high - found.mean == pytest.approx(half)


def test_the_reference_ranks_pairs_by_the_mean_over_tokens():
    pairs = pa.table(
        {"pair_id": ["x", "y", "z"], "chosen_id": ["a", "c", "a"], "rejected_id": ["b", "d", "d"]}
    )
    gradients = pa.table(
        {
            "response_id": ["d", "c", "b", "a"],
            "log_prob": pa.array([-4.0, -9.0, -3.0, -8.0], pa.float32()),
            "tokens": pa.array([4, 3, 1, 8], pa.int32()),
        }
    )
    # a -1, b -3, c -3, d -1 a token: x is right, y wrong, z a tie; sums would have x wrong
    dataset = pa.table(
        {
            "pair_id": ["z", "y", "x"],
            "prompt_id": ["p", "q", "p"],
            "split": ["train", "test", "test"],
        }
    )
    found = reference_ranking(dataset, pairs, gradients)
    assert found["kept"].mean == pytest.approx((0.75 + 0) / 2)
    assert found["held_out"].mean == pytest.approx(0.5)
    assert reference_ranking(dataset.slice(0, 1), pairs, gradients)["held_out"] is None


def test_pairs_are_moved_the_right_way_as_log_ratios_say_and_a_policy_that_stood_still_by_half():
    before, after = small(1), small(2)
    rows = [("p", "ab", "cd"), ("p", "ef", "ab"), ("q", "cd cd", "a")]
    dataset = pa.table(
        {
            "prompt": [[{"role": "user", "content": "ef"}]] * 3,
            "prompt_id": [row[0] for row in rows],
            "chosen": [[{"role": "assistant", "content": row[1]}] for row in rows],
            "rejected": [[{"role": "assistant", "content": row[2]}] for row in rows],
            "split": ["test"] * 3,
        }
    )

    def log_prob(policy: Policy, text: str) -> float:
        ids, said = encode(policy.tokenizer, [{"role": "user", "content": "ef"}], text)
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None]).sum().item()

    moved = [[log_prob(after, text) - log_prob(before, text) for text in row[1:]] for row in rows]
    right = [float(chosen > rejected) for chosen, rejected in moved]
    assert 0 < sum(right) < 3, "the test needs pairs of both kinds"
    expected = np.mean([np.mean(right[:2]), right[2]])
    assert pair_accuracy(before, after, dataset).mean == pytest.approx(expected)
    assert pair_accuracy(before, before, dataset).mean == 0.5
    kept = dataset.set_column(4, "split", pa.array(["train"] * 3))
    assert pair_accuracy(before, after, kept) is None


def test_an_opponent_that_is_not_there_is_named(tmp_path):
    (tmp_path / "train-1").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "train-1"):
        (line,) = EvaluateConfig(against=str(place)).problems()
        assert line.startswith(f"evaluate.against={place} ")
        with pytest.raises(UserError, match="train-"):
            opponent.location(str(place))
    (line,) = EvaluateConfig(decoding="beam").problems()
    assert "sampled, greedy, both" in line


def test_an_opponent_is_an_artifact_or_the_model_in_it_and_its_bytes_count(tmp_path):
    save_policy(small(1), tmp_path / "train-1" / "model")
    whole, inner = (str(tmp_path / "train-1" / name) for name in ("", "model"))
    assert outside(EvaluateConfig()) == {}
    before = outside(EvaluateConfig(against=whole))
    assert before == outside(EvaluateConfig(against=inner))
    assert "against/model.safetensors" in before
    save_policy(small(2), tmp_path / "train-1" / "model")
    assert outside(EvaluateConfig(against=whole)) != before


def test_the_report_leaves_out_what_was_not_measured():
    assert evaluation.measured({}) == {"shares": [], "nats": [], "variety": []}
    nothing = {"kl": None, "diversity": {"sft": None, "trained": None}, "length_controlled": None}
    assert evaluation.measured(nothing) == evaluation.measured({})
    assert evaluation.opponent({}) == evaluation.opponent({"against": ""}) == "SFT"


@pytest.mark.parametrize(("decoding", "asked"), [("sampled", 12), ("greedy", 4), ("both", 16)])
def test_the_forecast_counts_the_judgements_of_each_decoding(decoding, asked):
    words = ["evaluate.kind=rubric", "evaluate.options.model=marker", "evaluate.draws=3"]
    config = command_line.read([*words, f"evaluate.decoding={decoding}"]).config
    prompts = pa.table(
        {
            "prompt_id": ["p", "q", "r"],
            "prompt": [[{"role": "user", "content": "ask"}]] * 3,
            "split": ["test", "pool", "test"],
        }
    )
    assert len(costs.evaluate_asks(config, {"prompts": prompts}).requests) == asked
